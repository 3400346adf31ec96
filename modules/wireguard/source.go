package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

const (
	// freePortTries is how often a transparent dial whose client's port is
	// taken asks the stack for another. The stack picks one that is free of
	// sockets, but which may have a connection to the same upstream left in
	// TIME_WAIT.
	freePortTries = 4

	// internet4 and internet6 are the prefix lengths from which on allowed IPs
	// stand for a network of the peer's. A wider prefix of public addresses
	// (0.0.0.0/0, or its halves, which some prefer in routing tables) stands for
	// the internet, where clients are: nobody has more than an IPv4 /8, and
	// registries hand out no IPv6 prefix wider than /16.
	internet4 = 8
	internet6 = 16
)

// Source returns the address that a dial of route comes from inside the
// tunnel: with options.Transparent the client's. If that cannot be, the
// reason says why, and the address is the zero value, which stands for the
// tunnel's own.
//
// It cannot be if upstream and client are of different families, and if home
// would take the client's address for its own, for a neighbour's or for no
// client's: loopback, link-local, multicast, broadcast and unspecified ones,
// those in the tunnel's own prefixes, and those in allowed IPs of the tunnel's
// peers, default routes and other prefixes that stand for the internet aside.
func (a *App) Source(route Route, options DialOptions) (source netip.AddrPort, reason string) {
	if !options.Transparent {
		return netip.AddrPort{}, ""
	}
	client, upstream := options.Client.Unmap(), route.Address.Addr()
	switch {
	case !client.IsValid():
		return netip.AddrPort{}, "the client has no IP address"
	case client.Is4() != upstream.Is4():
		return netip.AddrPort{}, fmt.Sprintf("the client's address %s and the upstream's %s are of different families", client, upstream)
	}
	if kind := unfit(client); kind != "" {
		return netip.AddrPort{}, fmt.Sprintf("the client's address %s is %s", client, kind)
	}
	if owner := a.inside(route.Tunnel, client); owner != "" {
		return netip.AddrPort{}, fmt.Sprintf("the client's address %s is in %s", client, owner)
	}
	return netip.AddrPortFrom(client, options.ClientPort), ""
}

// fromSource dials remote from source or, where that is not to be had, from
// what comes closest to it: another port of the client's, or the tunnel's own
// address. It adds to the reason why it is not the client's address and port.
func fromSource(source netip.AddrPort, reason string, remote netip.AddrPort, dial func(netip.AddrPort) (net.Conn, error)) (net.Conn, string, error) {
	conn, err := dial(source)
	if isClash(err) && source.Port() != 0 {
		reason = fmt.Sprintf("port %d of the client's address is in use towards %s", source.Port(), remote)
		for try := 0; try < freePortTries && isClash(err); try++ {
			conn, err = dial(netip.AddrPortFrom(source.Addr(), 0))
		}
	}
	if errors.Is(err, netstack.ErrTooManyClients) {
		reason = fmt.Sprintf("the client's address %s is one too many: as many others as a tunnel takes have connections in it", source.Addr())
		conn, err = dial(netip.AddrPort{})
	}
	return conn, reason, err
}

// unfit says what an address is that cannot be another machine's across a
// network, or nothing.
func unfit(addr netip.Addr) string {
	switch {
	case addr.IsLoopback():
		return "loopback"
	case addr.IsLinkLocalUnicast():
		return "link-local"
	case addr.IsMulticast():
		return "multicast"
	case addr.IsUnspecified(), addr.Is4() && addr.As4()[0] == 0: // RFC 1122, section 3.2.1.3
		return "unspecified"
	case addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "broadcast"
	}
	return ""
}

// inside says which network of the tunnel's or of its peers' has an address,
// or nothing.
func (a *App) inside(name string, addr netip.Addr) string {
	c, ok := a.tunnels[name]
	if !ok {
		return ""
	}
	config := c.claim.Config()
	for _, prefix := range config.Addresses {
		if prefix.Contains(addr) {
			return "the tunnel's own network " + prefix.Masked().String()
		}
	}
	for _, peer := range config.Peers {
		for _, prefix := range peer.AllowedIPs {
			if prefix.Contains(addr) && !isInternet(prefix) {
				return fmt.Sprintf("%s, which is in the allowed_ips of peer %s", prefix, peer.Name)
			}
		}
	}
	return ""
}

// isInternet says whether allowed IPs stand for the internet.
func isInternet(prefix netip.Prefix) bool {
	if prefix.Addr().Is4() {
		return prefix.Bits() < internet4
	}
	// All unique local addresses together are a private network: fc00::/7.
	return prefix.Bits() < internet6 && !(prefix.Bits() >= 7 && prefix.Addr().IsPrivate())
}

// CheckTransparent says what can be seen beforehand of why an upstream at host
// will not see its clients' own addresses, or why clients will not get its
// answers. Whether home is ready to answer cannot be seen from here. Nothing
// is said of names that only DNS knows. The families that clients can be of are
// given by ipv4 and ipv6.
func (a *App) CheckTransparent(host, tunnel string, ipv4, ipv6 bool) (warnings []string) {
	var addresses []netip.Addr
	if c, ok := a.peers[host]; ok {
		addresses = c.hosts[host]
	} else if ip, err := netip.ParseAddr(host); err == nil {
		addresses = []netip.Addr{ip.Unmap()}
		route, err := a.addressRoute(ip.Unmap(), 0, tunnel)
		if err == nil && !a.isPeer(route) {
			warnings = append(warnings, fmt.Sprintf("%[1]s seems to be a machine behind peer %[2]s: it will answer clients by its own way to the internet, and not through the tunnel, so that no connection comes about; use proxy_protocol instead of transparent, or if %[1]s is the peer itself, add %[3]s to its allowed_ips",
				ip, route.Peer, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen())))
		}
	}
	if len(addresses) == 0 {
		return warnings
	}
	for _, family := range []struct {
		name    string
		clients bool
		is      func(netip.Addr) bool
	}{{"IPv4", ipv4, netip.Addr.Is4}, {"IPv6", ipv6, netip.Addr.Is6}} {
		if family.clients && !slices.ContainsFunc(addresses, family.is) {
			warnings = append(warnings, fmt.Sprintf("%s has no %s address inside the tunnel, so it will see %[2]s clients with the tunnel's address; give both ends one, and add home's to the peer's allowed_ips", host, family.name))
		}
	}
	return warnings
}

// isPeer says whether a route's address is the peer's own, as far as its
// configuration tells.
func (a *App) isPeer(route Route) bool {
	c, address := a.tunnels[route.Tunnel], route.Address.Addr()
	if slices.Contains(c.hosts[route.Peer], address) {
		return true
	}
	peer, length := c.claim.Config().PeerFor(address)
	return peer != nil && length == address.BitLen()
}

// isClash says whether a dial found its local address in use.
func isClash(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL)
}
