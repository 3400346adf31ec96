package wireguard

import (
	"fmt"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// origins remembers where in a Caddyfile a value stood, because what is wrong
// with it may only be known at provision, when the configuration is JSON and
// has lost its lines. It is of the last adaptation in this process and only
// ever makes an error message better.
var origins = struct {
	sync.Mutex
	at map[string]string
}{at: make(map[string]string)}

// maxOrigins bounds the table: past it, it starts anew.
const maxOrigins = 4096

// NoteOrigin remembers that the value that key names stands at d's current
// token. Keys are words from the largest to the smallest thing, such as
// "tunnel wg0 peer home public_key" or "upstream home:22".
func NoteOrigin(d *caddyfile.Dispenser, key string) {
	origins.Lock()
	defer origins.Unlock()
	if len(origins.at) >= maxOrigins {
		clear(origins.at)
	}
	origins.at[key] = fmt.Sprintf("%s:%d", d.File(), d.Line())
}

// forgetOrigins forgets all that begins with prefix, before what it stands for
// is read anew.
func forgetOrigins(prefix string) {
	origins.Lock()
	defer origins.Unlock()
	for key := range origins.at {
		if strings.HasPrefix(key, prefix) {
			delete(origins.at, key)
		}
	}
}

// AtOrigin puts file:line before err if key was noted, and returns err as it
// is otherwise, as with a configuration that was JSON from the start.
func AtOrigin(key string, err error) error {
	if err == nil {
		return nil
	}
	origins.Lock()
	defer origins.Unlock()
	if at, ok := origins.at[key]; ok {
		return fmt.Errorf("%s: %w", at, err)
	}
	return err
}

// atOriginOr puts key's origin before err, or else that of the larger thing
// that fallback names, because an option that is missing stands nowhere.
func atOriginOr(key, fallback string, err error) error {
	if at := AtOrigin(key, err); at != err {
		return at
	}
	return AtOrigin(fallback, err)
}
