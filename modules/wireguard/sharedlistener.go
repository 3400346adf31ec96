package wireguard

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/backoff"
	"github.com/homeward-relay/homeward/modules/internal/lingering"
	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// sharedListener lets several configurations accept from one listener. An
// accepted connection goes to exactly one user that is still open, and waits
// if for a moment there is none. One that a closed user closes with a request that it
// has not answered goes to another. It closes when its last user does.
type sharedListener struct {
	listener netstack.TCPListener
	accepted chan lingering.Socket
	done     chan struct{} // closed by Destruct
	stopped  chan struct{} // closed when the accept loop has ended
}

func newSharedListener(listener netstack.TCPListener) *sharedListener {
	s := &sharedListener{
		listener: listener,
		accepted: make(chan lingering.Socket),
		done:     make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	go s.accept()
	return s
}

func (s *sharedListener) accept() {
	defer close(s.stopped)
	errs := backoff.Loop{Message: "accepting connections inside the tunnel; trying again", Address: s.listener.Addr(), Done: s.done, Logger: caddyLog}
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			// Closed, by Destruct or with the tunnel.
			if errors.Is(err, net.ErrClosed) || !errs.Failed(err) {
				return
			}
			continue
		}
		errs.Succeeded()
		if !s.offer(conn.(netstack.TCPConn)) {
			return
		}
	}
}

// offer waits until a user takes a connection. It closes it, and returns false, when the
// last has gone.
func (s *sharedListener) offer(conn lingering.Socket) bool {
	select {
	case s.accepted <- conn:
		return true
	case <-s.done:
		conn.Close()
		return false
	}
}

func (s *sharedListener) hasStopped() bool { return isClosed(s.stopped) }

// Destruct closes the listener once its last user is closed.
func (s *sharedListener) Destruct() error {
	close(s.done)
	err := s.listener.Close()
	<-s.stopped
	return err
}

// use returns a listener that is one user's own, whose connections have a
// keepalive. Closing it calls release.
func (s *sharedListener) use(release func() error, keepAlive net.KeepAliveConfig) net.Listener {
	return &listenerUse{shared: s, release: release, keepAlive: keepAlive, closed: make(chan struct{})}
}

// listenerUse is a shared listener as one configuration has it.
type listenerUse struct {
	shared    *sharedListener
	release   func() error
	keepAlive net.KeepAliveConfig
	once      sync.Once
	closed    chan struct{}
}

// Accept waits for the next connection. It returns net.ErrClosed once this
// use is closed, whoever else goes on accepting.
func (u *listenerUse) Accept() (net.Conn, error) {
	select {
	case <-u.closed:
		return nil, u.closedError()
	default:
	}
	select {
	case conn := <-u.shared.accepted:
		if kept, ok := conn.(interface {
			SetKeepAliveConfig(net.KeepAliveConfig) error
		}); ok {
			// Without keepalive the connection works as well.
			_ = kept.SetKeepAliveConfig(u.keepAlive)
		}
		c := lingering.New(conn)
		c.OnUnanswered(u.handOn)
		return c, nil
	case <-u.closed:
	case <-u.shared.stopped:
	}
	return nil, u.closedError()
}

// handOn gives a connection of this use, once it is closed, to another, if all that has
// come is a request that may be asked twice.
func (u *listenerUse) handOn(conn lingering.Socket, read []byte) bool {
	if isClosed(u.shared.done) || !isRepeatable(read) {
		return false
	}
	go func() {
		// A server that shuts down begins with that before it closes its listeners.
		timer := time.NewTimer(closesWithin)
		defer timer.Stop()
		select {
		case <-u.closed:
			u.shared.offer(lingering.Again(conn, read))
		case <-timer.C:
			conn.Close()
		}
	}()
	return true
}

// closesWithin is far longer than a server takes from the one to the other.
const closesWithin = time.Second

// repeatable are the methods that a client may send again when it does not know what
// has become of the first (RFC 9110, section 9.2.2), and that have no body.
var repeatable = []string{http.MethodGet, http.MethodHead, http.MethodOptions}

// isRepeatable says whether b is a whole request, without a body and with such a method.
func isRepeatable(b []byte) bool {
	rest := bufio.NewReader(bytes.NewReader(b))
	request, err := http.ReadRequest(rest)
	return err == nil && rest.Buffered() == 0 && request.ContentLength == 0 && slices.Contains(repeatable, request.Method)
}

func (u *listenerUse) closedError() error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: u.Addr(), Err: net.ErrClosed}
}

// Close ends this use.
func (u *listenerUse) Close() (err error) {
	u.once.Do(func() {
		close(u.closed)
		err = u.release()
	})
	return err
}

// Addr is the listener's address inside the tunnel.
func (u *listenerUse) Addr() net.Addr { return u.shared.listener.Addr() }
