package wireguard

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/caddyserver/caddy/v2"
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
}

// FromContext returns the wireguard app of the configuration that is being
// provisioned. It is an error if that configuration has none.
func FromContext(ctx caddy.Context) (*App, error) { panic("stub") }

// Check says whether host can be an upstream at all, without resolving or
// dialing: an IP address that no peer has, a tunnel that is not configured or
// an ambiguous address is an error, which a module's Provision returns.
// Placeholders and DNS names pass.
func (a *App) Check(host, tunnel string) error { panic("stub") }

// Routes lists the ways to address, a host:port, best first.
func (a *App) Routes(ctx context.Context, address string, options DialOptions) ([]Route, error) {
	panic("stub")
}

// Dial connects to address, a host:port, over network "tcp" or "udp". The
// connection is a netstack.TCPConn or a netstack.UDPConn. It waits for the
// tunnel's first handshake until ctx is done. Its errors say what a person can
// act on, and wrap the stack's, so that errors.Is works with
// syscall.ECONNREFUSED, context.DeadlineExceeded and ErrNoPeer.
func (a *App) Dial(ctx context.Context, network, address string, options DialOptions) (net.Conn, Route, error) {
	panic("stub")
}

// ListenPacket opens an unconnected UDP socket inside the tunnel, on a free
// port and of any family: what a QUIC client needs.
func (a *App) ListenPacket(ctx context.Context, tunnel string) (net.PacketConn, error) {
	panic("stub")
}
