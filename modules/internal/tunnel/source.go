package tunnel

import (
	"context"
	"net/netip"
	"sync"
	"syscall"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// udpSources are the local addresses that UDP sockets were dialed from by
// demand, each with the remote address it is used towards. The stacks let such
// sockets share a local address, so that a client can talk to several upstreams
// from its one port, and neither notices when two share the remote address as
// well: one of them would get nothing any more. The zero value is ready.
type udpSources struct {
	mu    sync.Mutex
	taken map[udpPair]struct{}
}

type udpPair struct{ local, remote netip.AddrPort }

// take reports whether the pair was free, and is now the caller's.
func (s *udpSources) take(pair udpPair) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.taken[pair]; taken {
		return false
	}
	if s.taken == nil {
		s.taken = make(map[udpPair]struct{})
	}
	s.taken[pair] = struct{}{}
	return true
}

func (s *udpSources) release(pair udpPair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.taken, pair)
}

// dial is stack.DialUDP from a given address. A pair that is taken is an error
// that is syscall.EADDRINUSE.
func (s *udpSources) dial(ctx context.Context, stack netstack.Stack, local, remote netip.AddrPort) (netstack.UDPConn, error) {
	pair := udpPair{local, remote}
	chosen := local.Port() != 0
	if chosen && !s.take(pair) {
		return nil, syscall.EADDRINUSE
	}
	conn, err := stack.DialUDP(ctx, local, remote)
	if err != nil {
		if chosen {
			s.release(pair)
		}
		return nil, err
	}
	if !chosen {
		port, err := netip.ParseAddrPort(conn.LocalAddr().String())
		if err == nil {
			pair.local = netip.AddrPortFrom(local.Addr(), port.Port())
		}
		if err != nil || !s.take(pair) {
			_ = conn.Close()
			return nil, syscall.EADDRINUSE
		}
	}
	return &sourcedUDPConn{UDPConn: conn, release: sync.OnceFunc(func() { s.release(pair) })}, nil
}

// sourcedUDPConn gives its source free when it is closed.
type sourcedUDPConn struct {
	netstack.UDPConn
	release func()
}

// Close closes the socket.
func (c *sourcedUDPConn) Close() error {
	err := c.UDPConn.Close()
	c.release()
	return err
}
