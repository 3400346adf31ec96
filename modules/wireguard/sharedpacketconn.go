package wireguard

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/backoff"
	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

const (
	// maxDatagram is the largest UDP payload there is.
	maxDatagram = 65535

	// packetBacklog is how many datagrams wait for a user that reads slowly,
	// as in a socket's receive buffer. What comes after is dropped.
	packetBacklog = 512
)

// sharedPacketConn lets several configurations read from and write to one UDP
// socket inside a tunnel. A datagram goes to one user that is still open.
type sharedPacketConn struct {
	conn     netstack.UDPConn
	received chan datagram
	done     chan struct{} // closed by Destruct
	stopped  chan struct{} // closed when the read loop has ended
}

type datagram struct {
	payload *[]byte // from payloads, cut to the datagram's length
	from    net.Addr
}

var payloads = sync.Pool{New: func() any {
	payload := make([]byte, maxDatagram)
	return &payload
}}

func newSharedPacketConn(conn netstack.UDPConn) *sharedPacketConn {
	s := &sharedPacketConn{
		conn:     conn,
		received: make(chan datagram, packetBacklog),
		done:     make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	go s.read()
	return s
}

func (s *sharedPacketConn) read() {
	defer close(s.stopped)
	errs := backoff.Loop{Message: "receiving datagrams inside the tunnel; trying again", Address: s.conn.LocalAddr(), Done: s.done, Logger: caddyLog}
	for {
		payload := payloads.Get().(*[]byte)
		*payload = (*payload)[:maxDatagram]
		n, from, err := s.conn.ReadFrom(*payload)
		if err != nil {
			payloads.Put(payload)
			// Closed, by Destruct or with the tunnel.
			if errors.Is(err, net.ErrClosed) || !errs.Failed(err) {
				return
			}
			continue
		}
		errs.Succeeded()
		*payload = (*payload)[:n]
		select {
		case s.received <- datagram{payload, from}:
		default:
			payloads.Put(payload)
		}
	}
}

func (s *sharedPacketConn) hasStopped() bool { return isClosed(s.stopped) }

// Destruct closes the socket once its last user is closed.
func (s *sharedPacketConn) Destruct() error {
	close(s.done)
	err := s.conn.Close()
	<-s.stopped
	return err
}

// use returns a packet conn that is one user's own. Closing it calls release.
func (s *sharedPacketConn) use(release func() error) net.PacketConn {
	return &packetConnUse{shared: s, release: release, closed: make(chan struct{}), deadlineSet: make(chan struct{})}
}

// packetConnUse is a shared UDP socket as one configuration has it. Only its
// read deadline is its own; writes do not wait long enough to need one.
type packetConnUse struct {
	shared  *sharedPacketConn
	release func() error
	once    sync.Once
	closed  chan struct{}

	mu          sync.Mutex
	deadline    time.Time
	deadlineSet chan struct{} // closed and replaced when deadline changes
}

// ReadFrom implements net.PacketConn.
func (u *packetConnUse) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		select {
		case <-u.closed:
			return 0, nil, u.opError(net.ErrClosed)
		default:
		}
		u.mu.Lock()
		deadline, deadlineSet := u.deadline, u.deadlineSet
		u.mu.Unlock()
		var expired <-chan time.Time
		var timer *time.Timer
		if !deadline.IsZero() {
			timer = time.NewTimer(time.Until(deadline))
			expired = timer.C
		}
		n, from, again, err := u.wait(p, expired, deadlineSet)
		if timer != nil {
			timer.Stop()
		}
		if !again {
			return n, from, err
		}
	}
}

// wait waits for whatever comes first. If that is a new deadline, it has to
// be called again.
func (u *packetConnUse) wait(p []byte, expired <-chan time.Time, deadlineSet <-chan struct{}) (n int, from net.Addr, again bool, err error) {
	select {
	case d := <-u.shared.received:
		n = copy(p, *d.payload)
		payloads.Put(d.payload)
		return n, d.from, false, nil
	case <-u.closed:
		return 0, nil, false, u.opError(net.ErrClosed)
	case <-u.shared.stopped:
		return 0, nil, false, u.opError(net.ErrClosed)
	case <-expired:
		return 0, nil, false, u.opError(os.ErrDeadlineExceeded)
	case <-deadlineSet:
		return 0, nil, true, nil
	}
}

func (u *packetConnUse) opError(err error) error {
	return &net.OpError{Op: "read", Net: "udp", Addr: u.LocalAddr(), Err: err}
}

// WriteTo implements net.PacketConn.
func (u *packetConnUse) WriteTo(p []byte, to net.Addr) (int, error) {
	return u.shared.conn.WriteTo(p, to)
}

// Close ends this use.
func (u *packetConnUse) Close() (err error) {
	u.once.Do(func() {
		close(u.closed)
		err = u.release()
	})
	return err
}

// LocalAddr is the socket's address inside the tunnel.
func (u *packetConnUse) LocalAddr() net.Addr { return u.shared.conn.LocalAddr() }

// SetDeadline sets the read deadline; see SetWriteDeadline.
func (u *packetConnUse) SetDeadline(t time.Time) error { return u.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn for this user alone.
func (u *packetConnUse) SetReadDeadline(t time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.deadline = t
	close(u.deadlineSet)
	u.deadlineSet = make(chan struct{})
	return nil
}

// SetWriteDeadline does nothing: the socket's other users would have it too.
func (u *packetConnUse) SetWriteDeadline(time.Time) error { return nil }

// Interface guard
var _ net.PacketConn = (*packetConnUse)(nil)
