// Package lingering closes TCP connections so that what was written last arrives, as
// web servers do it ("lingering close").
//
// A kernel answers data for a socket that has been closed with RST, and forgets what
// it has still to send there (RFC 1122, section 4.2.2.13). HTTP/2 clients send while
// they receive, at least WINDOW_UPDATE. Go's server closes a connection within a
// second of its last response's last Write when there has been a GOAWAY, which every
// reload of Caddy brings. On a slow line much of a response is then still on its
// way, and the client would not get it.
package lingering

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// longest is how long a connection may linger.
	longest = 30 * time.Second

	// lookEvery is how often a lingering connection is looked at whose other end is
	// silent.
	lookEvery = 500 * time.Millisecond

	// quiet is how long the other end may be silent once it has everything: whoever
	// still sends would get RST, and may forget for it what has come before.
	quiet = 2 * time.Second

	// most is how many connections may linger at a time. More are closed as ever.
	most = 4096
)

// now is how many connections linger.
var now atomic.Int32

// Socket is what lingers.
type Socket interface {
	net.Conn
	CloseWrite() error
	SetLinger(seconds int) error
}

// Conn is a TCP connection whose Close returns at once and lets it linger: what has
// been written is sent, then FIN, and what comes is thrown away, until the other end
// closes or has been silent. After SetLinger(0) it is closed at once, with RST, and so
// is one that lingers already when it is closed for a second time.
type Conn struct {
	Socket

	reset, closed atomic.Bool
	closing       sync.Once

	begin      atomic.Pointer[beginning] // nil once it is over
	handedOver atomic.Bool
}

// New makes a Conn of a connection, which it owns from now on.
func New(socket Socket) *Conn { return &Conn{Socket: socket} }

// NetConn is the connection itself.
func (c *Conn) NetConn() net.Conn {
	c.endBeginning()
	return c.Socket
}

// SetDeadline is as net.TCPConn's.
func (c *Conn) SetDeadline(t time.Time) error {
	if c.handedOver.Load() {
		return c.closedError("set")
	}
	return c.Socket.SetDeadline(t)
}

// SetReadDeadline is as net.TCPConn's.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.handedOver.Load() {
		return c.closedError("set")
	}
	return c.Socket.SetReadDeadline(t)
}

// SetWriteDeadline is as net.TCPConn's.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.handedOver.Load() {
		return c.closedError("set")
	}
	return c.Socket.SetWriteDeadline(t)
}

// SetLinger is as net.TCPConn's.
func (c *Conn) SetLinger(seconds int) error {
	if c.handedOver.Load() {
		return c.closedError("set")
	}
	c.endBeginning()
	c.reset.Store(seconds == 0)
	return c.Socket.SetLinger(seconds)
}

// Read reads from the connection, and fails with net.ErrClosed when it lingers.
func (c *Conn) Read(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, c.closedError("read")
	}
	begin := c.begin.Load()
	begin.reading()
	n, err := c.Socket.Read(p)
	if !begin.read(p[:n], err) {
		c.endBeginning()
	}
	if c.closed.Load() {
		return 0, c.closedError("read")
	}
	return n, err
}

// Write writes to the connection.
func (c *Conn) Write(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, c.closedError("write")
	}
	c.endBeginning()
	return c.Socket.Write(p)
}

// CloseWrite is as net.TCPConn's.
func (c *Conn) CloseWrite() error {
	if c.handedOver.Load() {
		return c.closedError("close")
	}
	c.endBeginning()
	return c.Socket.CloseWrite()
}

// endBeginning is for every Write, so it does not store what is there already.
func (c *Conn) endBeginning() {
	if c.begin.Load() != nil {
		c.begin.Store(nil)
	}
}

func (c *Conn) closedError(op string) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: net.ErrClosed}
}

// ReadFrom writes what it reads, as the connection itself can do it best.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if c.closed.Load() {
		return 0, c.closedError("write")
	}
	c.endBeginning()
	if to, ok := c.Socket.(io.ReaderFrom); ok {
		return to.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Socket}, r)
}

// Close closes the connection.
func (c *Conn) Close() error {
	left := false // to others
	c.closing.Do(func() { left = c.handOver() || !c.reset.Load() && c.linger() })
	if left || c.handedOver.Load() {
		return nil
	}
	c.closed.Store(true)
	return c.Socket.Close()
}

// linger begins to linger, if there is reason to.
func (c *Conn) linger() bool {
	if waiting(c.Socket) == 0 {
		return false
	}
	if now.Add(1) > most {
		now.Add(-1)
		return false
	}
	c.closed.Store(true)
	if c.Socket.CloseWrite() != nil {
		now.Add(-1)
		return false
	}
	// Whoever reads, or waits to write, has to leave.
	_ = c.SetDeadline(time.Unix(1, 0))
	go func() {
		defer now.Add(-1)
		c.drain()
		_ = c.Socket.Close()
	}()
	return true
}

// drain throws away what comes until the connection may be closed.
func (c *Conn) drain() {
	buf := make([]byte, 4<<10)
	begin := time.Now()
	heard := begin // or had something to send
	for time.Since(begin) < longest {
		_ = c.SetReadDeadline(time.Now().Add(lookEvery))
		_, err := c.Socket.Read(buf)
		if err == nil || waiting(c.Socket) != 0 {
			heard = time.Now()
		}
		if timeout, ok := err.(net.Error); err != nil && !(ok && timeout.Timeout()) || time.Since(heard) > quiet {
			return
		}
	}
}
