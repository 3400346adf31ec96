package ddns

import (
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/homeward-relay/homeward/modules/wireguard"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("ddns", wireguard.RepeatableOption("ddns", func() *App { return new(App) }))
}

const (
	// originBlock is a block's own place in its Origins.
	originBlock = "ddns"

	// providers is the namespace of DNS providers.
	providers = "dns.providers"
)

// UnmarshalCaddyfile adds a domain. It can be called for one block after another.
// Syntax:
//
//	ddns <domain> {
//		provider <name> [<options...>]
//		a        static <address> | interface <name> | http <url...> | peer <name>
//		aaaa     static <address> | interface <name> | http <url...> | peer <name> [<suffix>/<length>]
//		check    <port>|off
//		ttl      <duration>
//		zone     <zone>
//	}
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if !d.NextArg() {
		return d.Err("a ddns block has the domain name whose records it is about: ddns example.duckdns.org { … }")
	}
	name := d.Val()
	if _, ok := a.Domains[name]; ok {
		return d.Errf("there is a ddns block for %s already", name)
	}
	domain := new(Domain)
	domain.Origins.Note(d, originBlock)
	if d.NextArg() {
		return d.Errf("a ddns block takes one domain name, not also %q; give that one a block of its own", d.Val())
	}
	for d.NextBlock(0) {
		if err := domain.unmarshalOption(d); err != nil {
			return err
		}
	}
	if a.Domains == nil {
		a.Domains = make(map[string]*Domain)
	}
	a.Domains[name] = domain
	if domain.ProviderRaw == nil {
		return d.Errf("ddns %s: provider is missing; it says who has the name's records: provider duckdns {env.DUCKDNS_TOKEN}", name)
	}
	if err := a.distinct(); err != nil {
		return err
	}
	return domain.check(name)
}

func (domain *Domain) unmarshalOption(d *caddyfile.Dispenser) error {
	option := d.Val()
	if _, twice := domain.Origins[option]; twice {
		return d.Errf("%s is given twice", option)
	}
	domain.Origins.Note(d, option)
	switch option {
	case "provider":
		return domain.unmarshalProvider(d)
	case "a":
		domain.A = new(Source)
		return domain.A.unmarshal(d)
	case "aaaa":
		domain.AAAA = new(Source)
		return domain.AAAA.unmarshal(d)
	}
	var value string
	if !d.AllArgs(&value) {
		return d.Errf("%s takes one value", option)
	}
	switch option {
	case "check":
		if value == "off" {
			domain.Check = noCheck
			return nil
		}
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil || port == 0 {
			return d.Errf("check is a TCP port from 1 to 65535, or off, not %q", value)
		}
		domain.Check = int(port)
	case "ttl":
		ttl, err := caddy.ParseDuration(value)
		if err != nil {
			return d.Errf("ttl is a duration such as 5m, not %q", value)
		}
		domain.TTL = caddy.Duration(ttl)
	case "zone":
		domain.Zone = value
	default:
		return d.Errf("there is no option %q in a ddns block; it has provider, a, aaaa, check, ttl and zone", option)
	}
	return nil
}

func (domain *Domain) unmarshalProvider(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Err("provider has the name of a DNS provider: provider duckdns {env.DUCKDNS_TOKEN}")
	}
	name := d.Val()
	if _, err := caddy.GetModule(providers + "." + name); err != nil {
		var known []string
		for _, module := range caddy.GetModules(providers) {
			known = append(known, module.ID.Name())
		}
		return d.Errf("this Caddy has no DNS provider %q; write one that it has (%s), or build one with it: `go get` its package, such as one of github.com/caddy-dns, import that in modules/modules.go and run xcaddy-build/build.sh", name, strings.Join(known, " "))
	}
	module, err := caddyfile.UnmarshalModule(d, providers+"."+name)
	if err != nil {
		return err
	}
	domain.ProviderRaw = caddyconfig.JSONModuleObject(module, "name", name, nil)
	return nil
}

func (s *Source) unmarshal(d *caddyfile.Dispenser) error {
	family := d.Val()
	words := d.RemainingArgs()
	if len(words) < 2 {
		return d.Errf("%s has a source: static <address>, interface <name>, http <url...> or peer <name>", family)
	}
	kind, values := words[0], words[1:]
	most := 1
	switch kind {
	case "static":
		s.Static = values[0]
	case "interface":
		s.Interface = values[0]
	case "http":
		s.HTTP, most = values, len(values)
	case "peer":
		s.Peer = values[0]
		if len(values) > 1 {
			s.Suffix, most = values[1], 2
		}
	default:
		return d.Errf("%s has no source %q; it is static, interface, http or peer", family, kind)
	}
	if len(values) > most {
		return d.Errf("%s %s takes no %q", family, kind, values[most])
	}
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*App)(nil)
