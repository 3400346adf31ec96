package wgtransport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/homeward-relay/homeward/modules/wireguard"
)

const (
	// quicPacketSize is the least that QUIC allows (RFC 9000, section 14), and
	// with IPv6's headers 1248 bytes: it fits any tunnel. quic-go's default of
	// 1280 does not fit an MTU of 1280.
	quicPacketSize = 1200

	// quicKeepAlive is http3's default.
	quicKeepAlive = 10 * time.Second
)

func (p *pool) newHTTP3Transport() *http3.Transport {
	t := p.transport
	probe := time.Duration(t.KeepAlive.ProbeInterval)
	if probe == 0 {
		probe = quicKeepAlive
	}
	probe = max(0, probe)
	return &http3.Transport{
		TLSClientConfig: p.tls,
		QUICConfig: &quic.Config{
			InitialPacketSize: quicPacketSize,
			KeepAlivePeriod:   probe,
			MaxIdleTimeout:    3 * max(probe, quicKeepAlive),
		},
		DisableCompression:     t.Compression != nil && !*t.Compression,
		MaxResponseHeaderBytes: int(t.MaxResponseHeaderSize),
		Dial: func(ctx context.Context, _ string, config *tls.Config, quicConfig *quic.Config) (*quic.Conn, error) {
			return p.dialQUIC(ctx, config, quicConfig)
		},
	}
}

// dialQUIC connects to the upstream of ctx's attempt. The dial goes on if the
// request that began it gives up, since others may be waiting for it by then.
func (p *pool) dialQUIC(ctx context.Context, config *tls.Config, quicConfig *quic.Config) (*quic.Conn, error) {
	t := p.transport
	a, err := attemptIn(ctx)
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(t.DialTimeout)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()

	routes, err := t.tunnels.Routes(ctx, a.address, t.dialOptions(a))
	if err != nil {
		return nil, reverseproxy.NewDialError(fmt.Errorf("dialing %s: %w", a.address, err))
	}
	var errs []error
	for i, route := range routes {
		// Of the time that is left, each address gets a fair part.
		deadline, _ := ctx.Deadline()
		attempt, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(routes)-i))
		conn, err := t.sockets.dial(attempt, route, config, quicConfig)
		cancel()
		if err == nil {
			t.logDialed("udp", a, route)
			return conn, nil
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = t.tunnels.Explain(ctx, route, fmt.Errorf("no answer by QUIC, which HTTP/3 needs: %w", err))
		} else {
			err = handshakeError(a, err)
		}
		errs = append(errs, err)
	}
	return nil, reverseproxy.NewDialError(fmt.Errorf("dialing %s: %w", a.address, errors.Join(errs...)))
}

// errHeaderTimeout is net/http's error of the same cause, for HTTP/3, whose
// transport has no such timeout. It is a net.Error, which makes the status 504.
type errHeaderTimeout struct{}

func (errHeaderTimeout) Error() string   { return "timeout awaiting response headers" }
func (errHeaderTimeout) Timeout() bool   { return true }
func (errHeaderTimeout) Temporary() bool { return true }

func (p *pool) roundTripHTTP3(req *http.Request) (*http.Response, error) {
	timeout := time.Duration(p.transport.ResponseHeaderTimeout)
	if timeout == 0 {
		return p.http3.RoundTrip(req)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(timeout, func() { cancel(errHeaderTimeout{}) })
	resp, err := p.http3.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause == (errHeaderTimeout{}) {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &releasingBody{ReadCloser: resp.Body, release: func() { cancel(nil) }}
	return resp, nil
}

// packetSockets has one UDP socket inside each tunnel that QUIC is spoken
// through, and all QUIC connections of the tunnel on it.
type packetSockets struct {
	tunnels tunnels

	mu   sync.Mutex
	open map[string]*quic.Transport // by tunnel
}

func newPacketSockets(tunnels tunnels) *packetSockets {
	return &packetSockets{tunnels: tunnels, open: map[string]*quic.Transport{}}
}

// dial makes a QUIC connection by route. If the tunnel's socket is
// dead, as after its stack was replaced, it opens another.
func (s *packetSockets) dial(ctx context.Context, route wireguard.Route, config *tls.Config, quicConfig *quic.Config) (*quic.Conn, error) {
	address := net.UDPAddrFromAddrPort(route.Address)
	for again := false; ; again = true {
		socket, err := s.get(ctx, route.Tunnel)
		if err != nil {
			return nil, fmt.Errorf("opening a UDP socket in tunnel %s: %w", route.Tunnel, err)
		}
		conn, err := socket.Dial(ctx, address, config, quicConfig)
		if err == nil || again || !errors.Is(err, quic.ErrTransportClosed) {
			return conn, err
		}
		s.drop(route.Tunnel, socket)
	}
}

func (s *packetSockets) get(ctx context.Context, tunnel string) (*quic.Transport, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if socket, ok := s.open[tunnel]; ok {
		return socket, nil
	}
	conn, err := s.tunnels.ListenPacket(ctx, tunnel)
	if err != nil {
		return nil, err
	}
	socket := &quic.Transport{Conn: bufferedPacketConn(conn)}
	s.open[tunnel] = socket
	return socket, nil
}

func (s *packetSockets) drop(tunnel string, socket *quic.Transport) {
	s.mu.Lock()
	if s.open[tunnel] == socket {
		delete(s.open, tunnel)
	}
	s.mu.Unlock()
	closeSocket(socket)
}

// close closes the sockets and what is left of their connections. A later dial
// opens them again.
func (s *packetSockets) close() {
	s.mu.Lock()
	open := s.open
	s.open = map[string]*quic.Transport{}
	s.mu.Unlock()
	for _, socket := range open {
		closeSocket(socket)
	}
}

func closeSocket(socket *quic.Transport) {
	// A socket that is gone already is as good as a closed one.
	_ = socket.Close()
	_ = socket.Conn.Close()
}

// fixedBuffers is a packet conn of a stack that sizes its buffers by itself.
// quic-go would complain in the log that it cannot.
type fixedBuffers struct{ net.PacketConn }

func (fixedBuffers) SetReadBuffer(int) error  { return nil }
func (fixedBuffers) SetWriteBuffer(int) error { return nil }

// bufferedPacketConn returns conn, which a kernel socket stays, for quic-go to
// use its offloads.
func bufferedPacketConn(conn net.PacketConn) net.PacketConn {
	if _, ok := conn.(interface{ SetReadBuffer(int) error }); ok {
		return conn
	}
	return fixedBuffers{conn}
}
