package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// ErrNoPeer means that an address is in no peer's allowed IPs, or a host is
// neither a peer's name nor resolvable: nothing was sent.
var ErrNoPeer = errors.New("no peer has this address")

// Route is the way that an upstream is reached: through which tunnel, to
// which peer, and at which address inside the tunnel.
type Route struct {
	Tunnel  string
	Peer    string
	Address netip.AddrPort

	// Source is the connection's own address inside the tunnel, which is what
	// the upstream sees. It is the zero value before the dial.
	Source netip.AddrPort

	// SourceReason says why Source is not the client's address and port,
	// although the dial was to be transparent.
	SourceReason string
}

// DialOptions say how an upstream is to be dialed. The zero value is usable.
type DialOptions struct {
	// Tunnel names the tunnel to use. If empty, the tunnel follows from the
	// address.
	Tunnel string

	// Client is the address on whose behalf the dial happens. Where the
	// upstream has addresses of both families, that of Client's family is
	// tried first. If it is the zero value, IPv4 comes first.
	Client netip.Addr

	// Transparent makes the dial come from Client's own address inside the
	// tunnel, and from ClientPort if that is free there. Where that cannot be
	// it comes from the tunnel's address, and Route.SourceReason says why: see
	// App.Source.
	Transparent bool
	ClientPort  uint16
}

// FromContext returns the wireguard app of the configuration that is being
// provisioned. It is an error if that configuration has none.
func FromContext(ctx caddy.Context) (*App, error) {
	app, err := ctx.AppIfConfigured("wireguard")
	switch {
	case errors.Is(err, caddy.ErrNotConfigured):
		return nil, fmt.Errorf("there is no tunnel in this configuration; add a wireguard block to the global options: %w", err)
	case err != nil:
		return nil, err
	}
	found := app.(*App)
	for _, module := range ctx.Modules() {
		if servers, ok := module.(*layer4.App); ok {
			found.layer4 = servers
		}
	}
	return found, nil
}

// Dial connects to address, a host:port, over network "tcp" or "udp". The
// connection is a netstack.TCPConn or a netstack.UDPConn. It waits for the
// tunnel's first handshake until ctx is done. Its errors say what a person can
// act on, and wrap the stack's, so that errors.Is works with
// syscall.ECONNREFUSED, context.DeadlineExceeded and ErrNoPeer.
//
// A host with several addresses is tried at one after the other. A dial that
// comes before the configuration has started waits for that, so that one which
// is only validated opens no socket: health checks begin in Provision.
func (a *App) Dial(ctx context.Context, network, address string, options DialOptions) (net.Conn, Route, error) {
	if err := a.waitStarted(ctx); err != nil {
		return nil, Route{}, fmt.Errorf("dialing %s: %w", address, err)
	}
	routes, err := a.Routes(ctx, address, options)
	if err != nil {
		return nil, Route{}, fmt.Errorf("dialing %s: %w", address, err)
	}
	var errs []error
	for i, route := range routes {
		// Of the time that is left, each address gets a fair part.
		attempt, cancel := shareDeadline(ctx, len(routes)-i)
		conn, err := a.dialRoute(attempt, network, &route, options)
		cancel()
		if err == nil {
			if route.SourceReason != "" && len(errs) > 0 {
				route.SourceReason += ", and: " + errors.Join(errs...).Error()
			}
			return conn, route, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, routes[len(errs)-1], fmt.Errorf("dialing %s: %w", address, errors.Join(errs...))
}

// dialRoute dials and sets the route's source.
func (a *App) dialRoute(ctx context.Context, network string, route *Route, options DialOptions) (net.Conn, error) {
	claim := a.tunnels[route.Tunnel].claim
	source, reason := a.Source(*route, options)
	conn, reason, err := fromSource(source, reason, route.Address, func(source netip.AddrPort) (net.Conn, error) {
		return dialFrom(ctx, claim, network, source, route.Address)
	})
	if err != nil {
		return nil, err
	}
	if local, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil {
		route.Source = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	}
	route.SourceReason = reason
	return conn, nil
}

// dialFrom dials from source, or from the tunnel's own address if that is the
// zero value.
func dialFrom(ctx context.Context, claim *tunnel.Claim, network string, source, address netip.AddrPort) (net.Conn, error) {
	switch network {
	case "tcp":
		conn, err := claim.DialTCP(ctx, source, address)
		if err != nil {
			return nil, err
		}
		return conn, nil
	case "udp":
		conn, err := claim.DialUDP(ctx, source, address)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
	return nil, fmt.Errorf("a tunnel carries tcp and udp, not %q", network)
}

// ListenPacket opens an unconnected UDP socket inside the tunnel, on a free
// port and of any family: what a QUIC client needs.
func (a *App) ListenPacket(ctx context.Context, name string) (net.PacketConn, error) {
	if err := a.waitStarted(ctx); err != nil {
		return nil, err
	}
	c, ok := a.tunnels[name]
	if !ok {
		return nil, a.noTunnel(name)
	}
	conn, err := c.claim.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), 0))
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// errNotStarted means that a configuration is used that has never been in
// force.
var errNotStarted = errors.New("this configuration has ended before it started")

func (a *App) waitStarted(ctx context.Context) error {
	select {
	case <-a.started:
		return nil
	default:
	}
	select {
	case <-a.started:
		return nil
	case <-a.ended:
		return errNotStarted
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Explain says what a person can act on about an upstream at route that did
// not answer, as Dial's errors do, for protocols that dial by themselves. The
// error stays wrapped inside.
func (a *App) Explain(ctx context.Context, route Route, err error) error {
	c, ok := a.tunnels[route.Tunnel]
	if !ok {
		return err
	}
	return c.claim.Explain(ctx, route.Address, err)
}
