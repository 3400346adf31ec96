package wgtransport

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// origins remembers which lines of a Caddyfile gave which transport, by the
// transport's JSON, which is all that Provision has of it. The same JSON may
// stand in several places: then an error names them all. (wireguard.NoteOrigin
// keeps one place for each key.)
var origins = struct {
	sync.Mutex
	at map[string][]string
}{at: make(map[string][]string)}

const (
	maxOrigins = 1024 // transports; past it, the table starts anew
	maxPlaces  = 8    // of one transport; past it, none is worth naming
)

func placeOf(d *caddyfile.Dispenser) string { return fmt.Sprintf("%s:%d", d.File(), d.Line()) }

// originKey is the transport as the Caddyfile adapter writes it.
func (t *Transport) originKey() string {
	key, err := json.Marshal(t)
	if err != nil {
		return ""
	}
	return string(key)
}

// note remembers that a transport such as t stands at place. The proxy's
// parser may still turn on TLS or h2c, as upstreams' schemes have it, so those
// forms are remembered too.
func (t *Transport) note(place string) {
	secure, cleartext := *t, *t
	if secure.TLS == nil {
		secure.TLS = new(reverseproxy.TLSConfig)
	}
	_ = cleartext.EnableH2C()
	origins.Lock()
	defer origins.Unlock()
	if len(origins.at) > maxOrigins {
		clear(origins.at)
	}
	for _, form := range []*Transport{t, &secure, &cleartext} {
		key := form.originKey()
		if !slices.Contains(origins.at[key], place) && len(origins.at[key]) <= maxPlaces {
			origins.at[key] = append(origins.at[key], place)
		}
	}
}

// atOrigin puts file:line before err if the transport came from a Caddyfile
// that this process adapted.
func atOrigin(key string, err error) error {
	if err == nil {
		return nil
	}
	origins.Lock()
	defer origins.Unlock()
	places := origins.at[key]
	if len(places) == 0 || len(places) > maxPlaces {
		return err
	}
	return fmt.Errorf("%s: %w", strings.Join(places, " or "), err)
}
