// Package congestion is the listener wrapper that gives the connections of
// Caddy's HTTP clients a congestion control for lines that lose packets.
package congestion

import (
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/backoff"
	"github.com/homeward-relay/homeward/modules/internal/lingering"
	"github.com/homeward-relay/homeward/modules/internal/publictcp"
)

func init() { caddy.RegisterModule(new(ListenerWrapper)) }

// maxWrappers bounds how deep a connection is unwrapped.
const maxWrappers = 32

// ListenerWrapper makes Linux send to clients with a congestion control of
// their server's own, where the host's is not what it should be: a client on a
// mobile or wireless line downloads with the congestion control of the host
// that Caddy runs on, and cubic, which most hosts have, collapses at a loss of
// one packet in a thousand. It also bounds what waits unsent in a connection's
// send buffer to 1 MiB, so that what is written now does not wait long behind
// what was written before.
//
// A process that is not root may use what root allows. If the kernel refuses,
// connections work with the host's own, and one line in the log says what root
// can do; mostly it is `modprobe tcp_bbr`. On other systems than Linux it does
// nothing but say so.
//
// Connections that the server closes linger until the client has all that was
// written: a reload would otherwise cost clients on slow lines the end of what they
// download over HTTP/2.
//
// The server goes on accepting connections when it could not for a while, for want of
// descriptors or memory. Without it, a `layer4` wrapper ends the server then.
//
// It is for HTTP/1.1 and HTTP/2, which are TCP. HTTP/3 is QUIC, whose congestion
// control is in the server and not in the kernel: it is not touched. Neither are
// Unix sockets.
//
// It may stand before or after `tls` and `proxy_protocol`, but before all other
// wrappers that wrap connections, such as `layer4` and `http_redirect`.
// Connections that go on to the layer-4 handler `wireguard` get `bbr` there.
type ListenerWrapper struct {
	// Algorithm is the congestion control's name as Linux has it, as in
	// `sysctl net.ipv4.tcp_available_congestion_control`. Default: `bbr`, but
	// clients nearer than a millisecond, who gain nothing by it, keep the
	// host's. One that is named here is for all.
	Algorithm string `json:"algorithm,omitempty"`

	logger *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (*ListenerWrapper) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.listeners.congestion_control",
		New: func() caddy.Module { return new(ListenerWrapper) },
	}
}

// Provision sets up the wrapper.
func (w *ListenerWrapper) Provision(ctx caddy.Context) error {
	w.logger = ctx.Logger(w)
	return nil
}

// Validate checks that there can be a congestion control of that name. Whether
// there is one shows with the first connection: it may be loaded until then.
func (w *ListenerWrapper) Validate() error {
	if w.Algorithm == "" {
		return nil
	}
	return publictcp.CheckName(w.Algorithm)
}

// WrapListener returns a listener that accepts what l accepts. Connections of the
// kernel's are lingering.Conns, the others the very same.
func (w *ListenerWrapper) WrapListener(l net.Listener) net.Listener {
	return &listener{Listener: backoff.Listen(l, w.logger), algorithm: w.Algorithm, logger: w.logger}
}

// UnmarshalCaddyfile sets up the wrapper from Caddyfile tokens. Syntax:
//
//	congestion_control [<algorithm>]
//
// It stands in the global options, before tls:
//
//	servers {
//		listener_wrappers {
//			congestion_control
//			tls
//		}
//	}
func (w *ListenerWrapper) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the wrapper's name
	if d.NextArg() {
		w.Algorithm = d.Val()
		if err := publictcp.CheckName(w.Algorithm); err != nil {
			return d.WrapErr(err)
		}
	}
	if d.NextArg() {
		return d.Errf("congestion_control takes one algorithm, not also %q; keep one of them", d.Val())
	}
	if d.NextBlock(0) {
		return d.Errf("congestion_control has no option %s: give the algorithm's name after it, or nothing for bbr", d.Val())
	}
	return nil
}

type listener struct {
	net.Listener
	algorithm string // empty if none is named
	logger    *zap.Logger
	unknown   sync.Once
}

// Accept tunes the connection and returns it.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp := tcpOf(conn); tcp != nil {
		publictcp.Tune(l.logger, tcp, l.algorithm)
		if net.Conn(tcp) == conn {
			return lingering.New(tcp), nil
		}
	} else if strings.HasPrefix(l.Addr().Network(), "tcp") {
		l.unknown.Do(func() {
			l.logger.Info("leaving connections as they are that are no sockets of the kernel's",
				zap.Stringer("listener", l.Addr()),
				zap.String("type", fmt.Sprintf("%T", conn)),
				zap.String("remedy", "if another listener wrapper makes them, put congestion_control before it; in a tunnel there is none"))
		})
	}
	return conn, nil
}

// tcpOf returns the kernel's TCP connection in conn, or nil.
func tcpOf(conn net.Conn) *net.TCPConn {
	for range maxWrappers {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case *lingering.Conn:
			conn = c.Socket // its NetConn is for those who read and write past it
		case interface{ NetConn() net.Conn }: // crypto/tls
			conn = c.NetConn()
		case interface{ Raw() net.Conn }: // go-proxyproto
			conn = c.Raw()
		default:
			return nil
		}
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner     = (*ListenerWrapper)(nil)
	_ caddy.Validator       = (*ListenerWrapper)(nil)
	_ caddy.ListenerWrapper = (*ListenerWrapper)(nil)
	_ caddyfile.Unmarshaler = (*ListenerWrapper)(nil)
)
