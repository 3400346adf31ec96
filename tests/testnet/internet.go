package testnet

import (
	"fmt"
	"strings"
	"testing"
)

// Addresses of an Internet, all from the blocks for documentation (RFC 5737,
// RFC 3849), those for private networks and the tunnel's own.
const (
	ClientIP  = "198.51.100.7"
	ClientIP6 = "2001:db8:1::7"
	RelayIP   = "203.0.113.5"
	RelayIP6  = "2001:db8:5::5"
	RouterIP  = "192.0.2.8" // what the world sees of home
	RouterIP2 = "192.0.2.9" // what it sees after a Reconnect, in turns
	HomeLANIP = "192.168.178.20"
	HomeIP6   = "2001:db8:8::20"
	HomeIP6B  = "2001:db8:9::20" // after a Renumber, in turns

	// Of AddRelay and AddHome. IPv4's blocks for documentation are used up, so
	// these are from the one for benchmarks (RFC 2544).
	Relay2IP  = "198.18.5.5"
	Relay2IP6 = "2001:db8:6::5"
	Router2IP = "198.18.8.8"
	Home2IP6  = "2001:db8:18::20"

	RelayTunnelIP = "10.77.0.1"
	HomeTunnelIP  = "10.77.0.2"
)

// Names that stand for the relay everywhere in an Internet. Domain and
// Subdomain are the sites; Endpoint is the VM's own name.
const (
	Domain    = "example.duckdns.org"
	Subdomain = "sub.example.duckdns.org"
	Endpoint  = "example-vm.duckdns.org"
	Endpoint2 = "example-vm2.duckdns.org" // of AddRelay
)

// Internet is the user's situation:
//
//	Client ── Core ── Relay
//	            │
//	          Router (carrier-grade NAT: nothing comes in by itself)
//	            │
//	           Home
//
// Core only routes, and is the place for an emulated line. IPv6 goes
// everywhere; home answers from outside on port 443 alone, as a router with
// one open port would have it.
type Internet struct {
	Client, Core, Relay, Router, Home *Namespace

	routerIP string // at present
	homeIP6  string
}

// NewInternet makes the namespaces and joins them.
func NewInternet(t testing.TB) *Internet {
	t.Helper()
	return NewInternetOver(t, cable)
}

// NewInternetOver is NewInternet with a line of the caller's between Router
// and Core, which join makes: an interface in each namespace, of the given
// names, without addresses.
func NewInternetOver(t testing.TB, join func(t testing.TB, router *Namespace, eth string, core *Namespace, name string)) *Internet {
	t.Helper()
	Need(t, "ip", "nft")
	number := nextNumber()
	i := &Internet{
		Client: newNamespace(t, number, "client"),
		Core:   newNamespace(t, number, "core"),
		Relay:  newNamespace(t, number, "relay"),
		Router: newNamespace(t, number, "router"),
		Home:   newNamespace(t, number, "home"),

		routerIP: RouterIP,
		homeIP6:  HomeIP6,
	}
	forward(t, i.Core, i.Router)

	cable(t, i.Client, "eth0", i.Core, "client")
	cable(t, i.Relay, "eth0", i.Core, "relay")
	join(t, i.Router, "eth0", i.Core, "router")
	cable(t, i.Home, "eth0", i.Router, "lan")
	address(t, i.Client, i.Core, "client", ClientIP, "198.51.100.1", ClientIP6, "2001:db8:1::1")
	address(t, i.Relay, i.Core, "relay", RelayIP, "203.0.113.1", RelayIP6, "2001:db8:5::1")
	address(t, i.Router, i.Core, "router", RouterIP, "192.0.2.1", "2001:db8:7::8", "2001:db8:7::1")
	address(t, i.Home, i.Router, "lan", HomeLANIP, "192.168.178.1", HomeIP6, "2001:db8:8::1")
	i.Core.IP(t, "route add 2001:db8:8::/64 via 2001:db8:7::8")

	i.Router.NFT(t, homeRouter)

	names := map[string]string{Domain: RelayIP, Subdomain: RelayIP, Endpoint: RelayIP}
	for _, namespace := range []*Namespace{i.Client, i.Relay, i.Home} {
		namespace.SetHosts(t, names)
	}
	return i
}

// homeRouter are the rules of a router at home: a masquerade, through which
// nothing comes in by itself, and by IPv6 port 443 alone.
const homeRouter = `
table ip nat {
	chain out {
		type nat hook postrouting priority srcnat
		oifname "eth0" masquerade fully-random
	}
}
table inet filter {
	chain forward {
		type filter hook forward priority filter; policy drop
		ct state established,related accept
		iifname "lan" accept
		meta nfproto ipv6 tcp dport 443 accept
		meta nfproto ipv6 meta l4proto ipv6-icmp accept
	}
}`

// AddRelay adds another VM, whose name is Endpoint2.
func (i *Internet) AddRelay(t testing.TB) *Namespace {
	t.Helper()
	relay := NewNamespace(t, "relay")
	cable(t, relay, "eth0", i.Core, "relay2")
	address(t, relay, i.Core, "relay2", Relay2IP, "198.18.5.1", Relay2IP6, "2001:db8:6::1")
	i.name(t, Endpoint2, Relay2IP)
	relay.SetHosts(t, i.Relay.hosts)
	return relay
}

// AddHome adds another home, with a router of its own. Its network, and its
// address in it, are those of the first.
func (i *Internet) AddHome(t testing.TB) (router, home *Namespace) {
	t.Helper()
	router, home = NewNamespace(t, "router"), NewNamespace(t, "home")
	forward(t, router)
	cable(t, router, "eth0", i.Core, "router2")
	cable(t, home, "eth0", router, "lan")
	address(t, router, i.Core, "router2", Router2IP, "198.18.8.1", "2001:db8:17::8", "2001:db8:17::1")
	address(t, home, router, "lan", HomeLANIP, "192.168.178.1", Home2IP6, "2001:db8:18::1")
	i.Core.IP(t, "route add 2001:db8:18::/64 via 2001:db8:17::8")
	router.NFT(t, homeRouter)
	home.SetHosts(t, i.Home.hosts)
	return router, home
}

// name makes a name known on all machines.
func (i *Internet) name(t testing.TB, name, address string) {
	t.Helper()
	for _, namespace := range []*Namespace{i.Client, i.Relay, i.Home} {
		namespace.SetHosts(t, map[string]string{name: address})
	}
}

// forward makes routers of namespaces.
func forward(t testing.TB, routers ...*Namespace) {
	t.Helper()
	for _, router := range routers {
		router.Sysctl(t, "net.ipv4.ip_forward", "1")
		router.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	}
}

// Reconnect gives the router its address anew, or another one as a daily
// reconnect does, and with it a NAT that has forgotten everything: a masquerade's
// state goes with its address.
func (i *Internet) Reconnect(newAddress bool) error {
	old := i.routerIP
	switch {
	case newAddress && old == RouterIP:
		i.routerIP = RouterIP2
	case newAddress:
		i.routerIP = RouterIP
	}
	for _, command := range []string{
		"addr del " + old + "/24 dev eth0",
		"addr add " + i.routerIP + "/24 dev eth0",
		"route replace default via 192.0.2.1",
	} {
		if out, err := i.Router.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			return fmt.Errorf("reconnecting: ip %s: %w: %s", command, err, out)
		}
	}
	return nil
}

// Renumber gives home's line another IPv6 prefix, as many providers do every day.
// Nothing gets to the old one any more; home has kept its address in it if
// deprecated says so, as a host does that a router has told of the new one alone.
func (i *Internet) Renumber(deprecated bool) error {
	old, is := i.homeIP6, HomeIP6B
	if old == HomeIP6B {
		is = HomeIP6
	}
	i.homeIP6 = is
	prefix := func(address, host string) string { return strings.TrimSuffix(address, "20") + host }
	gone := "addr del " + old + "/64 dev eth0"
	if deprecated {
		gone = "addr change " + old + "/64 dev eth0 preferred_lft 0"
	}
	for _, step := range []struct {
		at      *Namespace
		command string
	}{
		{i.Core, "route del " + prefix(old, "/64")},
		{i.Core, "route replace " + prefix(is, "/64") + " via 2001:db8:7::8"},
		{i.Router, "addr replace " + prefix(is, "1/64") + " dev lan nodad"},
		{i.Home, "addr replace " + is + "/64 dev eth0 nodad"},
		{i.Home, "route replace default via " + prefix(is, "1")},
		{i.Home, gone},
	} {
		if out, err := step.at.Command("ip", strings.Fields("-6 "+step.command)...).CombinedOutput(); err != nil {
			return fmt.Errorf("renumbering: ip %s: %w: %s", step.command, err, out)
		}
	}
	return nil
}

// Cut cuts home's line: every packet between its router and the world is lost,
// and nobody is told.
func (i *Internet) Cut(t testing.TB) {
	t.Helper()
	i.Core.NFT(t, `
table inet cut {
	chain forward {
		type filter hook forward priority filter
		iifname "router" drop
		oifname "router" drop
	}
}`)
}

// Mend ends what Cut began.
func (i *Internet) Mend(t testing.TB) {
	t.Helper()
	i.Core.NFT(t, "delete table inet cut")
}

// cable lays a cable between two namespaces.
func cable(t testing.TB, host *Namespace, eth string, router *Namespace, name string) {
	t.Helper()
	host.IP(t, fmt.Sprintf("link add %s type veth peer name %s netns %s", eth, name, router.Name))
}

// address gives addresses to a host's eth0 and to the router's interface of
// the given name, which are the host's gateways.
func address(t testing.TB, host, router *Namespace, name, ip, gateway, ip6, gateway6 string) {
	t.Helper()
	router.IP(t,
		fmt.Sprintf("addr add %s/24 dev %s", gateway, name),
		fmt.Sprintf("addr add %s/64 dev %s nodad", gateway6, name),
		fmt.Sprintf("link set %s up", name),
	)
	host.IP(t,
		fmt.Sprintf("addr add %s/24 dev eth0", ip),
		fmt.Sprintf("addr add %s/64 dev eth0 nodad", ip6),
		"link set eth0 up",
		"route add default via "+gateway,
		"route add default via "+gateway6,
	)
}
