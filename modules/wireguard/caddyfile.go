package wireguard

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("wireguard", RepeatableOption("wireguard", func() *App { return new(App) }))
}

// RepeatableOption returns the parser of a global option that configures the app of the
// same name, and whose blocks add up: UnmarshalCaddyfile is called for one after another.
func RepeatableOption[A caddyfile.Unmarshaler](name string, newApp func() A) httpcaddyfile.UnmarshalGlobalFunc {
	return func(d *caddyfile.Dispenser, existing any) (any, error) {
		app := newApp()
		if former, ok := existing.(httpcaddyfile.App); ok {
			if err := json.Unmarshal(former.Value, app); err != nil {
				return nil, fmt.Errorf("reading the former %s blocks: %w", name, err)
			}
		}
		if err := app.UnmarshalCaddyfile(d); err != nil {
			return nil, err
		}
		return httpcaddyfile.App{Name: name, Value: caddyconfig.JSON(app, nil)}, nil
	}
}

// UnmarshalCaddyfile adds a tunnel. It can be called for one block after
// another. Syntax:
//
//	wireguard [<name>] {
//		private_key        <placeholder>
//		address            <address/length...>
//		listen_port        <port>
//		mtu                auto|<bytes>
//		resolvers          <address[:port]...>
//		stack              auto|kernel|gvisor
//		congestion_control <name>
//		wg_quick           <file>
//		peer <name> {
//			public_key           <base64>
//			preshared_key        <placeholder>
//			allowed_ips          <address/length...>
//			host                 <address...>
//			endpoint             <host:port>
//			persistent_keepalive <duration>
//		}
//	}
//
// The name defaults to wg0. The lines address, resolvers, allowed_ips and host
// can be repeated, and add up; the others are given once. Where there is a
// wg_quick file, whatever it says can be left out here.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	name := defaultTunnel
	if d.NextArg() {
		name = d.Val()
	}
	if _, ok := a.Tunnels[name]; ok {
		return d.Errf("there is a tunnel %s already; give this wireguard block another name: wireguard <name> { … }", name)
	}
	t := new(Tunnel)
	t.Origins.Note(d, originBlock)
	if d.NextArg() {
		return d.Errf("a wireguard block takes one name, not also %q", d.Val())
	}
	given := make(givenOptions)
	for d.NextBlock(0) {
		if err := given.add(d); err != nil {
			return err
		}
		if err := t.unmarshalOption(d); err != nil {
			return err
		}
	}
	if t.MTU == autoMTU && t.WgQuick == "" {
		t.MTU = 0
	}
	if a.Tunnels == nil {
		a.Tunnels = make(map[string]*Tunnel)
	}
	a.Tunnels[name] = t
	// What is wrong whatever the placeholders mean is said now, with its line.
	if _, err := t.parse(name, nil); err != nil {
		return err
	}
	return uniquePeers(a.Tunnels)
}

func (t *Tunnel) unmarshalOption(d *caddyfile.Dispenser) error {
	option := d.Val()
	if option == "peer" {
		return t.unmarshalPeer(d)
	}
	t.Origins.Note(d, option)
	switch option {
	case "private_key":
		return oneArg(d, &t.PrivateKey)
	case "address":
		return someArgs(d, &t.Address)
	case "listen_port":
		return intArg(d, &t.ListenPort, "a UDP port from 1 to 65535")
	case "mtu":
		var text string
		if err := oneArg(d, &text); err != nil {
			return err
		}
		if text == "auto" {
			t.MTU = autoMTU
			return nil
		}
		mtu, err := strconv.Atoi(text)
		if err != nil || mtu <= 0 {
			return d.Errf("mtu is auto or a number of bytes, not %q", text)
		}
		t.MTU = mtu
		return nil
	case "resolvers":
		return someArgs(d, &t.Resolvers)
	case "stack":
		return oneArg(d, &t.Stack)
	case "congestion_control":
		return oneArg(d, &t.CongestionControl)
	case "wg_quick":
		return oneArg(d, &t.WgQuick)
	}
	return d.Errf("there is no option %q in a wireguard block; it has private_key, address, listen_port, mtu, resolvers, stack, congestion_control, wg_quick and peer", option)
}

func (t *Tunnel) unmarshalPeer(d *caddyfile.Dispenser) error {
	var name string
	if err := oneArg(d, &name); err != nil {
		return err
	}
	if _, ok := t.Peers[name]; ok {
		return d.Errf("there is a peer %s in this tunnel already; each peer has one block and a name of its own", name)
	}
	origin := "peer " + name
	t.Origins.Note(d, origin)
	peer := new(Peer)
	given := make(givenOptions)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		err := given.add(d)
		if err != nil {
			return err
		}
		option := d.Val()
		t.Origins.Note(d, origin+" "+option)
		switch option {
		case "public_key":
			err = oneArg(d, &peer.PublicKey)
		case "preshared_key":
			err = oneArg(d, &peer.PresharedKey)
		case "allowed_ips":
			err = someArgs(d, &peer.AllowedIPs)
		case "host":
			err = someArgs(d, &peer.Host)
		case "endpoint":
			err = oneArg(d, &peer.Endpoint)
		case "persistent_keepalive":
			err = durationArg(d, &peer.PersistentKeepalive)
		case "shape":
			err = d.Err("shaping is not in this version; remove the shape block")
		default:
			err = d.Errf("there is no option %q in a peer block; it has public_key, preshared_key, allowed_ips, host, endpoint and persistent_keepalive", option)
		}
		if err != nil {
			return err
		}
	}
	if t.Peers == nil {
		t.Peers = make(map[string]*Peer)
	}
	t.Peers[name] = peer
	return nil
}

// givenOptions are the options that a block has so far.
type givenOptions map[string]bool

// add adds the option that d is at, and refuses one that is there already, unless its
// lines add up.
func (given givenOptions) add(d *caddyfile.Dispenser) error {
	option := d.Val()
	switch option {
	case "address", "resolvers", "allowed_ips", "host", "peer":
		return nil
	}
	if given[option] {
		return d.Errf("%s is given twice; keep one line", option)
	}
	given[option] = true
	return nil
}

// oneArg reads the one argument that an option takes.
func oneArg(d *caddyfile.Dispenser, value *string) error {
	option := d.Val()
	if !d.Args(value) {
		return d.Errf("%s needs a value after it", option)
	}
	// The surplus may be a part of a secret, so it is not shown.
	if d.NextArg() {
		return d.Errf("%s takes one value; put it into quotes if it has spaces", option)
	}
	if *value == "" {
		return d.Errf("%s has an empty value", option)
	}
	return nil
}

func someArgs(d *caddyfile.Dispenser, values *[]string) error {
	option := d.Val()
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Errf("%s needs at least one value after it", option)
	}
	*values = append(*values, args...)
	return nil
}

func intArg(d *caddyfile.Dispenser, value *int, what string) error {
	option := d.Val()
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return d.Errf("%s is %s, not %q", option, what, text)
	}
	*value = n
	return nil
}

func durationArg(d *caddyfile.Dispenser, value *caddy.Duration) error {
	option := d.Val()
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	// As in WireGuard's own files, a bare number is of seconds.
	if seconds, err := strconv.ParseUint(text, 10, 16); err == nil {
		text = strconv.FormatUint(seconds, 10) + "s"
	}
	duration, err := caddy.ParseDuration(text)
	if err != nil {
		return d.Errf("%s is a duration such as 25s, not %q", option, text)
	}
	*value = caddy.Duration(duration)
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*App)(nil)
