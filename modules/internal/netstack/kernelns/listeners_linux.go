package kernelns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// kept is a listening socket of the namespace, and of the next one if that has
// to be made anew. Who waits at it goes on waiting meanwhile.
type kept[S interface {
	comparable
	io.Closer
}] struct {
	stack   *Stack
	network string
	local   netip.AddrPort

	// listen opens a socket like this one, and restore sets on it what has
	// been set on this one. It is called with mu held.
	listen  func(context.Context, *place, netip.AddrPort) (S, error)
	restore func(S)

	mu      sync.Mutex
	socket  S
	place   *place // socket's
	failed  *place // where it could not be opened
	stopped bool   // by the stack's end
	closed  bool   // by its user
}

// listener is a kept socket of either kind.
type listener interface {
	follow() error
	stop()
}

// keep takes care that a socket listens wherever the stack is.
func (s *Stack) keep(l listener) error {
	if err := s.open.addListener(l); err != nil {
		return err
	}
	// If the namespace was replaced just before, it was not yet among those
	// that were opened again.
	return l.follow()
}

// listenAgain opens what listens where the stack is now, and says whether that
// is done.
func (s *Stack) listenAgain() (done bool) {
	done = true
	for _, l := range s.open.allListeners() {
		// It says in the log what is wrong.
		if l.follow() != nil {
			done = false
		}
	}
	return done
}

// follow opens the socket where the stack is now, if it is not there yet.
func (k *kept[S]) follow() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.stack.place.Load()
	if k.place == p || k.stopped || k.closed {
		return nil
	}
	logger := k.stack.logger.With(zap.String("network", k.network), zap.Stringer("address", k.local))
	socket, err := k.listen(k.stack.life, p, k.local)
	if err != nil {
		if k.failed != p && k.stack.life.Err() == nil {
			logger.Error("listening again in the tunnel's new network namespace; trying until it can be", zap.Error(err))
		}
		k.failed = p
		return err
	}
	if k.failed == p {
		logger.Info("listening again in the tunnel's new network namespace")
	}
	k.restore(socket)
	_ = k.socket.Close()
	k.socket, k.place = socket, p
	return nil
}

func (k *kept[S]) current() S {
	socket, _ := k.currentAt()
	return socket
}

// currentAt is current, with the place that the socket is at.
func (k *kept[S]) currentAt() (S, *place) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.socket, k.place
}

// through does something with the socket, and again with its successor when it
// has been replaced meanwhile.
func (k *kept[S]) through(do func(S) error) error {
	return k.throughAt(func(socket S, _ *place) error { return do(socket) })
}

// throughAt is through for who wants to know the socket's place.
func (k *kept[S]) throughAt(do func(S, *place) error) error {
	for {
		socket, at := k.currentAt()
		err := do(socket, at)
		if errors.Is(err, net.ErrClosed) && k.current() != socket {
			continue
		}
		return err
	}
}

// Close stops listening. Connections that nobody accepted are reset. That the
// stack was closed before is no error.
func (k *kept[S]) Close() error {
	k.stack.open.removeListener(k)
	k.mu.Lock()
	defer k.mu.Unlock()
	again := k.closed
	k.closed = true
	err := k.socket.Close()
	if k.stopped && !again {
		return nil
	}
	return err
}

// stop is what the stack's end does to the socket.
func (k *kept[S]) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	_ = k.socket.Close()
}

// tcpListener accepts connections.
type tcpListener struct {
	kept[*net.TCPListener]
	tune     func(*net.TCPConn)
	deadline time.Time // with kept.mu
}

// Accept waits for the next connection, which is a netstack.TCPConn.
func (l *tcpListener) Accept() (net.Conn, error) {
	for {
		var conn *net.TCPConn
		var at *place
		if err := l.throughAt(func(socket *net.TCPListener, p *place) (err error) {
			at = p
			conn, err = socket.AcceptTCP()
			return err
		}); err != nil {
			return nil, err
		}
		l.tune(conn)
		added, err := l.stack.open.addTCP(conn, at, nil)
		if err == nil {
			return added, nil
		}
		_ = conn.SetLinger(0)
		conn.Close()
		if !errors.Is(err, errLeft) {
			return nil, opError("accept", "tcp", nil, l.Addr(), err)
		}
	}
}

// Addr returns the *net.TCPAddr that the listener is bound to.
func (l *tcpListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.local) }

// SetDeadline bounds Accept.
func (l *tcpListener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	return l.socket.SetDeadline(t)
}

func (l *tcpListener) restore(socket *net.TCPListener) { _ = socket.SetDeadline(l.deadline) }

// udpListener is an unconnected UDP socket on a given port.
type udpListener struct {
	kept[*net.UDPConn]
	readDeadline, writeDeadline time.Time // with kept.mu
}

// ReadFrom waits for the next datagram.
func (l *udpListener) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	err = l.through(func(socket *net.UDPConn) (err error) {
		n, from, err = socket.ReadFrom(b)
		return err
	})
	return n, from, err
}

// Read is ReadFrom for who does not care whom from.
func (l *udpListener) Read(b []byte) (n int, err error) {
	err = l.through(func(socket *net.UDPConn) (err error) {
		n, err = socket.Read(b)
		return err
	})
	return n, err
}

// WriteTo sends a datagram to an address. One that is sent from a place that the
// stack has left is lost, as datagrams may be: an error would be taken for one that
// stays.
func (l *udpListener) WriteTo(b []byte, to net.Addr) (n int, err error) {
	err = l.throughAt(func(socket *net.UDPConn, at *place) (err error) {
		n, err = socket.WriteTo(b, to)
		if err != nil && !errors.Is(err, net.ErrClosed) && at.life.Err() != nil {
			n, err = len(b), nil
		}
		return err
	})
	return n, err
}

// Write fails: nobody says whom to.
func (l *udpListener) Write(b []byte) (int, error) { return l.current().Write(b) }

// LocalAddr returns the *net.UDPAddr that the socket is bound to.
func (l *udpListener) LocalAddr() net.Addr { return l.current().LocalAddr() }

// RemoteAddr is nil.
func (l *udpListener) RemoteAddr() net.Addr { return l.current().RemoteAddr() }

// SetDeadline bounds reads and writes.
func (l *udpListener) SetDeadline(t time.Time) error {
	return errors.Join(l.SetReadDeadline(t), l.SetWriteDeadline(t))
}

// SetReadDeadline bounds reads.
func (l *udpListener) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readDeadline = t
	return l.socket.SetReadDeadline(t)
}

// SetWriteDeadline bounds writes.
func (l *udpListener) SetWriteDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writeDeadline = t
	return l.socket.SetWriteDeadline(t)
}

func (l *udpListener) restore(socket *net.UDPConn) {
	_ = socket.SetReadDeadline(l.readDeadline)
	_ = socket.SetWriteDeadline(l.writeDeadline)
}

// Interface guards
var (
	_ netstack.TCPListener = (*tcpListener)(nil)
	_ netstack.UDPConn     = (*udpListener)(nil)
)
