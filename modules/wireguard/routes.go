package wireguard

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Check says whether host can be an upstream at all, without resolving or
// dialing: an IP address that no peer has, a tunnel that is not configured or
// an ambiguous address is an error, which a module's Provision returns.
// Placeholders and DNS names pass.
func (a *App) Check(host, tunnel string) error {
	if strings.Contains(tunnel, "{") {
		return nil
	}
	if _, ok := a.tunnels[tunnel]; tunnel != "" && !ok {
		return a.noTunnel(tunnel)
	}
	if strings.Contains(host, "{") {
		return nil
	}
	if _, ok := a.peers[host]; ok {
		_, err := a.peerRoutes(host, 0, DialOptions{Tunnel: tunnel})
		return err
	}
	if address, err := netip.ParseAddr(host); err == nil {
		_, err := a.addressRoute(address.Unmap(), 0, tunnel)
		return err
	}
	_, err := a.resolving(host, tunnel)
	return err
}

// Routes lists the ways to address, a host:port, best first. The host is the
// name of a peer, an IP address, or a name that is looked up through the
// tunnel's resolvers, in this order.
func (a *App) Routes(ctx context.Context, address string, options DialOptions) ([]Route, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%q is not host:port: %w", address, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("%q has no port from 1 to 65535", address)
	}
	if _, ok := a.tunnels[options.Tunnel]; options.Tunnel != "" && !ok {
		return nil, a.noTunnel(options.Tunnel)
	}
	if _, ok := a.peers[host]; ok {
		return a.peerRoutes(host, uint16(port), options)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		route, err := a.addressRoute(ip.Unmap(), uint16(port), options.Tunnel)
		if err != nil {
			return nil, err
		}
		return []Route{route}, nil
	}
	return a.nameRoutes(ctx, host, uint16(port), options)
}

// peerRoutes are the ways to what a peer's bare name stands for.
func (a *App) peerRoutes(peer string, port uint16, options DialOptions) ([]Route, error) {
	c := a.peers[peer]
	if options.Tunnel != "" && options.Tunnel != c.name {
		return nil, fmt.Errorf("peer %s is in tunnel %s, not %s: %w", peer, c.name, options.Tunnel, ErrNoPeer)
	}
	hosts := c.hosts[peer]
	if len(hosts) == 0 {
		return nil, fmt.Errorf("the name of peer %s stands for no address, because its allowed_ips are networks only; add a line `host <address>` to it: %w", peer, ErrNoPeer)
	}
	routes := make([]Route, 0, len(hosts))
	for _, host := range preferFamily(hosts, options.Client) {
		routes = append(routes, Route{Tunnel: c.name, Peer: peer, Address: netip.AddrPortFrom(host, port)})
	}
	return routes, nil
}

// addressRoute is the way to an IP address: through the tunnel whose peers'
// allowed IPs cover it by the longest prefix.
func (a *App) addressRoute(address netip.Addr, port uint16, tunnel string) (Route, error) {
	var found Route
	longest, tie := -1, ""
	for _, name := range slices.Sorted(maps.Keys(a.tunnels)) {
		if tunnel != "" && tunnel != name {
			continue
		}
		peer, length := a.tunnels[name].claim.Config().PeerFor(address)
		switch {
		case peer == nil || length < longest:
		case length == longest:
			tie = name
		default:
			longest, tie = length, ""
			found = Route{Tunnel: name, Peer: peer.Name, Address: netip.AddrPortFrom(address, port)}
		}
	}
	switch {
	case longest < 0:
		return Route{}, fmt.Errorf("%s is in no peer's allowed_ips; add it to the peer that has it, or use another address: %w", address, ErrNoPeer)
	case tie != "":
		return Route{}, fmt.Errorf("%s is in the allowed_ips of peers in tunnels %s and %s; say which with the option tunnel, or use the peer's name: %w", address, found.Tunnel, tie, ErrNoPeer)
	}
	return found, nil
}

// nameRoutes are the ways to the addresses that a tunnel's resolvers have for
// a name.
func (a *App) nameRoutes(ctx context.Context, name string, port uint16, options DialOptions) ([]Route, error) {
	c, err := a.resolving(name, options.Tunnel)
	if err != nil {
		return nil, err
	}
	addresses, err := c.resolver().LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, fmt.Errorf("resolving %s through tunnel %s: %w", name, c.name, err)
	}
	for i := range addresses {
		addresses[i] = addresses[i].Unmap()
	}
	var routes []Route
	for _, address := range preferFamily(addresses, options.Client) {
		var route Route
		if route, err = a.addressRoute(address, port, c.name); err == nil {
			routes = append(routes, route)
		}
	}
	if len(routes) == 0 {
		return nil, fmt.Errorf("%s resolves to %v: %w", name, addresses, err)
	}
	return routes, nil
}

// resolving returns the tunnel whose resolvers are to be asked for a name.
func (a *App) resolving(name, tunnel string) (*claimed, error) {
	var found *claimed
	for _, c := range a.tunnels {
		if len(c.resolvers) == 0 || tunnel != "" && tunnel != c.name {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s is no peer's name, and tunnels %s and %s both have resolvers; say which to ask with the option tunnel: %w", name, found.name, c.name, ErrNoPeer)
		}
		found = c
	}
	if found == nil {
		return nil, fmt.Errorf("%s is neither a peer's name (those are: %s) nor an IP address, and no tunnel has resolvers to ask for it: %w", name, a.peerNames(), ErrNoPeer)
	}
	return found, nil
}

// resolver asks the tunnel's DNS servers, one after the other, through the
// tunnel.
func (c *claimed) resolver() *net.Resolver {
	var next atomic.Uint32
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			server := c.resolvers[int(next.Add(1)-1)%len(c.resolvers)]
			if strings.HasPrefix(network, "tcp") {
				return c.claim.DialTCP(ctx, netip.AddrPort{}, server)
			}
			return c.claim.DialUDP(ctx, netip.AddrPort{}, server)
		},
	}
}

func (a *App) noTunnel(name string) error {
	return fmt.Errorf("there is no tunnel %s; the configured ones are: %s", name, strings.Join(slices.Sorted(maps.Keys(a.tunnels)), " "))
}

func (a *App) peerNames() string {
	if len(a.peers) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(a.peers)), " ")
}

// preferFamily puts the addresses of client's family first and keeps the order
// otherwise. Without a client IPv4 is first.
func preferFamily(addresses []netip.Addr, client netip.Addr) []netip.Addr {
	want4 := !client.IsValid() || client.Unmap().Is4()
	sorted := slices.Clone(addresses)
	slices.SortStableFunc(sorted, func(x, y netip.Addr) int {
		switch {
		case x.Is4() == y.Is4():
			return 0
		case x.Is4() == want4:
			return -1
		}
		return 1
	})
	return sorted
}

// shareDeadline gives one of several attempts its part of the time until
// ctx's deadline.
func shareDeadline(ctx context.Context, attempts int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || attempts <= 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/time.Duration(attempts))
}
