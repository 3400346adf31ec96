package lingering

import (
	"errors"
	"sync"
	"syscall"
	"time"
)

// longestBeginning is how much is kept of what was read first. A request without a
// body is shorter.
const longestBeginning = 64 << 10

// OnUnanswered has Close call f if the connection's owner, as far as can be seen from
// here, has read something and then done nothing: has written nothing, has not asked for
// more and has seen no error. read is all that was read. If f returns true, it has the
// socket, without deadlines, and Close leaves it alone. f must not wait.
//
// It is to be called before the connection is used.
//
// Go's HTTP server closes a connection like that if its Shutdown comes between the
// connection and its first request (https://github.com/golang/go/issues/75591). Before it
// gives a request without a body to a handler it begins to read more.
func (c *Conn) OnUnanswered(f func(socket Socket, read []byte) bool) {
	c.begin.Store(&beginning{f: f})
}

// handOver gives the connection away if it is unanswered and somebody takes it.
func (c *Conn) handOver() bool {
	begin := c.begin.Swap(nil)
	read := begin.unanswered()
	if len(read) == 0 || c.SetDeadline(time.Time{}) != nil {
		return false
	}
	// From here on it may be another's.
	c.closed.Store(true)
	c.handedOver.Store(true)
	if begin.f(c.Socket, read) {
		return true
	}
	c.closed.Store(false)
	c.handedOver.Store(false)
	return false
}

// beginning is what has been read of a connection before anything was written. Its
// methods do nothing with nil.
type beginning struct {
	f func(Socket, []byte) bool

	mu   sync.Mutex
	all  []byte
	asks bool // for more
}

// reading is to be called before something is read.
func (b *beginning) reading() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asks = true
}

// read is to be called after something was read, and says whether this still is a
// beginning.
func (b *beginning) read(p []byte, err error) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil || len(b.all)+len(p) > longestBeginning {
		return false
	}
	b.all = append(b.all, p...)
	b.asks = false
	return true
}

// unanswered returns what was read, if nobody has asked for more.
func (b *beginning) unanswered() []byte {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.asks {
		return nil
	}
	return b.all
}

// Again returns the socket with what has been read of it already still to be read.
func Again(socket Socket, read []byte) Socket {
	return &again{Socket: socket, rest: read}
}

// again is no *net.TCPConn, since whoever reads from that would miss the rest.
type again struct {
	Socket

	mu   sync.Mutex
	rest []byte
}

// SyscallConn is the socket's, for those who only look.
func (a *again) SyscallConn() (syscall.RawConn, error) {
	if socket, ok := a.Socket.(syscall.Conn); ok {
		return socket.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

func (a *again) Read(p []byte) (int, error) {
	a.mu.Lock()
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	a.mu.Unlock()
	if n > 0 {
		return n, nil
	}
	return a.Socket.Read(p)
}
