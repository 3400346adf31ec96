package l4wireguard

import (
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// notYet are the words of the grammar that this version does not speak, each
// with what to do instead. They are refused: an option that changes what a
// home sees or how much it has to bear must never be ignored.
var notYet = map[string]string{
	"lb_try_duration": "remove it; every upstream is tried once, in order, for dial_timeout each",
	"lb_try_interval": "remove it; every upstream is tried once, in order, for dial_timeout each",
	"fail_duration":   "remove it; every connection tries the upstreams in order",
	"max_fails":       "remove it; every connection tries the upstreams in order",
	"health_interval": "remove it; every connection tries the upstreams in order",
	"health_timeout":  "remove it; dial_timeout bounds each try",
	"max_connections": "remove it, and bound the connections in home's program",
}

// options are the words that this version speaks, as error messages list them.
const options = "upstream, tunnel, direct, transparent, proxy_protocol, dial_timeout, idle_timeout, lb_policy"

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	wireguard [<upstreams...>] {
//		upstream <[network/]host:port> [...]
//		tunnel <name>
//		direct
//		transparent
//		proxy_protocol v1|v2
//		dial_timeout <duration>
//		idle_timeout <duration>
//		lb_policy first
//	}
//
// Upstreams are in order of preference, those on the handler's own line first.
// All options but upstream may be given once. lb_policy has no other value so
// far, and first is the default.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the handler's name
	for d.NextArg() {
		if err := h.unmarshalUpstream(d); err != nil {
			return err
		}
	}

	given := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if given[option] && option != "upstream" {
			return d.Errf("%s is given twice: keep one of them", option)
		}
		given[option] = true
		if err := h.unmarshalOption(d, option); err != nil {
			return err
		}
		if err := h.checkDirect(); err != nil {
			return d.WrapErr(err)
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("%s takes no block: remove the braces", option)
		}
	}

	if len(h.Upstreams) == 0 {
		return d.Err("wireguard has no upstream: give it at least one address, such as home:22")
	}
	return nil
}

func (h *Handler) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	if instead, ok := notYet[option]; ok {
		return d.Errf("%s is not supported yet: %s", option, instead)
	}

	switch option {
	case "upstream":
		if !d.NextArg() {
			return d.Err("upstream has no address: give at least one, such as home:22")
		}
		for ok := true; ok; ok = d.NextArg() {
			if err := h.unmarshalUpstream(d); err != nil {
				return err
			}
		}
		return nil

	case "tunnel":
		return one(d, option, "the name of a tunnel, such as wg0", &h.Tunnel)

	case "direct":
		return flag(d, option, &h.Direct)

	case "transparent":
		return flag(d, option, &h.Transparent)

	case "proxy_protocol":
		h.Origins.Note(d, option)
		if err := one(d, option, "v1 or v2", &h.ProxyProtocol); err != nil {
			return err
		}
		if _, err := proxyVersion(h.ProxyProtocol); err != nil && !isDynamic(h.ProxyProtocol) {
			return d.WrapErr(err)
		}
		return nil

	case "dial_timeout":
		return duration(d, option, "5s", &h.DialTimeout)

	case "idle_timeout":
		return duration(d, option, "10m", &h.IdleTimeout)

	case "lb_policy":
		var policy string
		if err := one(d, option, "first", &policy); err != nil {
			return err
		}
		if policy != "first" {
			return d.Errf("lb_policy %s is not supported yet: use first, the default, and give the upstreams in order of preference", policy)
		}
		return nil
	}
	return d.Errf("unrecognized option %q of wireguard: use one of %s", option, options)
}

// unmarshalUpstream takes the current token for an upstream.
func (h *Handler) unmarshalUpstream(d *caddyfile.Dispenser) error {
	configured := d.Val()
	if _, err := parseUpstream(configured); err != nil {
		return d.WrapErr(err)
	}
	h.Origins.Note(d, configured)
	h.Upstreams = append(h.Upstreams, configured)
	return nil
}

// flag sets an option that takes no argument.
func flag(d *caddyfile.Dispenser, option string, value *bool) error {
	if d.NextArg() {
		return d.Errf("%s takes no argument: remove %q", option, d.Val())
	}
	*value = true
	return nil
}

// one takes the option's only argument.
func one(d *caddyfile.Dispenser, option, want string, value *string) error {
	args := d.RemainingArgs()
	if len(args) != 1 || args[0] == "" {
		return d.Errf("%s takes one argument: %s", option, want)
	}
	*value = args[0]
	return nil
}

// duration takes the option's only argument as a positive duration.
func duration(d *caddyfile.Dispenser, option, example string, value *caddy.Duration) error {
	var text string
	if err := one(d, option, "a duration, such as "+example, &text); err != nil {
		return err
	}
	parsed, err := caddy.ParseDuration(text)
	if err != nil || parsed <= 0 {
		return d.Errf("%s %q is not a positive duration: write a number with a unit, such as %s", option, text, example)
	}
	*value = caddy.Duration(parsed)
	return nil
}

// isDynamic reports whether a value has placeholders.
func isDynamic(value string) bool {
	open := strings.IndexByte(value, '{')
	return open >= 0 && strings.IndexByte(value[open:], '}') >= 0
}
