package gvisor

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// tcpListener accepts connections of the stack.
type tcpListener struct {
	socket
	addr       net.Addr
	entry      waiter.Entry
	acceptable chan struct{}
	deadline   deadline

	closed    chan struct{}
	closeOnce sync.Once
}

func newTCPListener(sock socket, local netip.Addr) *tcpListener {
	l := &tcpListener{socket: sock, closed: make(chan struct{})}
	l.entry, l.acceptable = newEntry(waiter.ReadableEvents | hangUp)
	l.queue.EventRegister(&l.entry)
	l.addr = net.TCPAddrFromAddrPort(boundAddr(l.endpoint, local))
	return l
}

// Accept waits for the next connection, which is a netstack.TCPConn.
func (l *tcpListener) Accept() (net.Conn, error) {
	conn, err := l.accept()
	if err != nil {
		return nil, opError("accept", "tcp", nil, l.addr, err)
	}
	return conn, nil
}

func (l *tcpListener) accept() (*tcpConn, error) {
	expired := l.deadline.done()
	for {
		select {
		case <-l.closed:
			return nil, net.ErrClosed
		case <-expired:
			return nil, os.ErrDeadlineExceeded
		default:
		}
		endpoint, queue, err := l.endpoint.Accept(nil)
		switch err.(type) {
		case nil:
			// Another Accept may wait for a connection that came with the
			// same token as this one.
			l.pass()
			conn := newTCPConn(socket{endpoint: endpoint, queue: queue})
			conn.noteAddresses()
			return conn, nil
		case *tcpip.ErrWouldBlock:
		default:
			// The listening state ends only with the listener or the stack.
			l.pass()
			return nil, net.ErrClosed
		}
		select {
		case <-l.acceptable:
		case <-l.closed:
		case <-expired:
		}
	}
}

// pass wakes another Accept.
func (l *tcpListener) pass() {
	select {
	case l.acceptable <- struct{}{}:
	default:
	}
}

// Close stops listening. Connections that nobody accepted are reset.
func (l *tcpListener) Close() error {
	err := net.ErrClosed
	l.closeOnce.Do(func() {
		err = nil
		close(l.closed)
		l.deadline.set(time.Time{})
		l.endpoint.Close()
	})
	return opError("close", "tcp", nil, l.addr, err)
}

// Addr returns the *net.TCPAddr that the listener is bound to.
func (l *tcpListener) Addr() net.Addr { return l.addr }

// SetDeadline makes Accept end with os.ErrDeadlineExceeded at t.
func (l *tcpListener) SetDeadline(t time.Time) error {
	select {
	case <-l.closed:
		return opError("set", "tcp", nil, l.addr, net.ErrClosed)
	default:
	}
	l.deadline.set(t)
	return nil
}

var _ netstack.TCPListener = (*tcpListener)(nil)
