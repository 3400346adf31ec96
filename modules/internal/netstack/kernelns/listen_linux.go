package kernelns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// listenBacklog is how many connections may wait to be accepted. It is Linux's
// somaxconn.
const listenBacklog = 4096

// tcpListener accepts connections of the namespace, and of the next one if
// that has to be made anew.
type tcpListener struct {
	open   *openSockets
	local  netip.AddrPort
	logger *zap.Logger
	tune   func(*net.TCPConn)

	mu       sync.Mutex
	listener *net.TCPListener
	deadline time.Time
	closed   bool
}

// ListenTCP listens on local.
func (s *Stack) ListenTCP(local netip.AddrPort) (netstack.TCPListener, error) {
	local = unmap(local)
	fail := func(err error) (netstack.TCPListener, error) {
		return nil, opError("listen", "tcp", nil, net.TCPAddrFromAddrPort(local), err)
	}
	if err := netstack.CheckListen(*s.addresses.Load(), local); err != nil {
		return fail(err)
	}
	listener, err := listenTCP(s.place.Load(), local)
	if err != nil {
		return fail(err)
	}
	l := &tcpListener{open: &s.open, local: listener.Addr().(*net.TCPAddr).AddrPort(), logger: s.logger, tune: s.tune, listener: listener}
	l.local = netip.AddrPortFrom(local.Addr(), l.local.Port())
	s.open.mu.Lock()
	defer s.open.mu.Unlock()
	if s.open.closed {
		listener.Close()
		return fail(net.ErrClosed)
	}
	if s.open.listeners == nil {
		s.open.listeners = make(map[*tcpListener]struct{})
	}
	s.open.listeners[l] = struct{}{}
	return l, nil
}

func listenTCP(p *place, local netip.AddrPort) (*net.TCPListener, error) {
	stock := p.stocks.of(unix.SOCK_STREAM, local.Addr())
	fd, err := stock.take()
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "tcp")
	defer file.Close()
	// Connections that an earlier listener accepted do not keep the port.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	// What is accepted inherits it.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMax)
	if err := bindListener(fd, stock.domain, local); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, listenBacklog); err != nil {
		return nil, err
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	return listener.(*net.TCPListener), nil
}

// bindListener binds; the unspecified IPv6 address is both families.
func bindListener(fd, domain int, local netip.AddrPort) error {
	if domain == unix.AF_INET6 {
		// A host may have made the other meaning the default.
		only6 := 1
		if !local.Addr().IsValid() || local.Addr().IsUnspecified() {
			only6 = 0
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, only6); err != nil {
			return err
		}
	}
	return unix.Bind(fd, sockaddr(local, domain))
}

// ListenUDP returns an unconnected UDP socket.
func (s *Stack) ListenUDP(local netip.AddrPort) (netstack.UDPConn, error) {
	local = unmap(local)
	conn, err := s.listenUDP(local)
	if err != nil {
		return nil, opError("listen", "udp", nil, net.UDPAddrFromAddrPort(local), err)
	}
	return conn, nil
}

func (s *Stack) listenUDP(local netip.AddrPort) (*udpConn, error) {
	if err := netstack.CheckListen(*s.addresses.Load(), local); err != nil {
		return nil, err
	}
	stock := s.place.Load().stocks.of(unix.SOCK_DGRAM, local.Addr())
	fd, err := stock.take()
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "udp")
	defer file.Close()
	if err := bindListener(fd, stock.domain, local); err != nil {
		return nil, err
	}
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	added, err := s.open.addUDP(conn.(*net.UDPConn), nil)
	if err != nil {
		conn.Close()
	}
	return added, err
}

// Accept waits for the next connection, which is a netstack.TCPConn.
func (l *tcpListener) Accept() (net.Conn, error) {
	for {
		listener := l.current()
		conn, err := listener.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) && l.current() != listener {
				continue
			}
			return nil, err
		}
		l.tune(conn)
		added, err := l.open.addTCP(conn, nil)
		if err != nil {
			conn.Close()
			return nil, opError("accept", "tcp", nil, l.Addr(), err)
		}
		return added, nil
	}
}

func (l *tcpListener) current() *net.TCPListener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.listener
}

// listenAgain listens in another place, on the same port.
func (l *tcpListener) listenAgain(p *place) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	listener, err := listenTCP(p, l.local)
	if err != nil {
		return err
	}
	_ = listener.SetDeadline(l.deadline)
	_ = l.listener.Close()
	l.listener = listener
	return nil
}

// Addr returns the *net.TCPAddr that the listener is bound to.
func (l *tcpListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.local) }

// SetDeadline bounds Accept.
func (l *tcpListener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	return l.listener.SetDeadline(t)
}

// Close stops listening. Connections that nobody accepted are reset. That the
// stack was closed before is no error.
func (l *tcpListener) Close() error {
	l.open.mu.Lock()
	delete(l.open.listeners, l)
	ended := l.open.closed
	l.open.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	again := l.closed
	l.closed = true
	err := l.listener.Close()
	if ended && !again {
		return nil
	}
	return err
}

// stop is what the stack's end does to the listener.
func (l *tcpListener) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.listener.Close()
}

// listenAgain opens all listeners in another place.
func (o *openSockets) listenAgain(p *place) {
	o.mu.Lock()
	listeners := make([]*tcpListener, 0, len(o.listeners))
	for l := range o.listeners {
		listeners = append(listeners, l)
	}
	o.mu.Unlock()
	for _, l := range listeners {
		if err := l.listenAgain(p); err != nil {
			l.logger.Error("listening again in the tunnel's new network namespace", zap.Stringer("address", l.local), zap.Error(err))
		}
	}
}
