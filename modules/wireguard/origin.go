package wireguard

import (
	"fmt"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Origins say where in a Caddyfile the parts of a module stood, as file:line
// by name. The Caddyfile adapter fills them in. They change nothing but error
// messages: much of what can be wrong shows only when the configuration is
// provisioned, by a process that after `caddy reload` has seen no Caddyfile.
type Origins map[string]string

// Note remembers that the part called name stands at d's current token.
func (o *Origins) Note(d *caddyfile.Dispenser, name string) {
	if *o == nil {
		*o = make(Origins)
	}
	(*o)[name] = fmt.Sprintf("%s:%d", d.File(), d.Line())
}

// At puts file:line before err: that of the first of the names which has one,
// since a part that is missing stands nowhere. It returns err as it is if none
// has, as in a configuration that was JSON from the start.
func (o Origins) At(err error, names ...string) error {
	if err == nil {
		return nil
	}
	for _, name := range names {
		if at, ok := o[name]; ok {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	return err
}
