package wgtransport

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// looks is how often a connection is looked at in the time that home may be
	// silent, which lasts up to so much longer.
	looks = 8

	// leastLook bounds how often that is.
	leastLook = 10 * time.Millisecond

	// orphanTimeout bounds how long what was closed goes on on gVisor's stack,
	// which would keep it for as long as home answers that it has no room. The
	// kernel's gives up after three minutes and a half. gVisor counts from the
	// last time that all was acknowledged, not from the last progress: hence
	// more.
	orphanTimeout = 5 * time.Minute
)

// watchedConn ends a TCP connection on which something waits to be acknowledged
// while home is silent. It looks only while something does; on a stack that does
// not tell, from the first write until it is closed.
type watchedConn struct {
	net.Conn
	traffic func() (now traffic, open bool)
	limit   time.Duration // of home's silence

	gone atomic.Bool // home is

	mu      sync.Mutex
	writing int // writes under way
	looking bool
	closed  bool
	silence silence
	timer   *time.Timer // nil until something was written
}

func newWatchedConn(conn net.Conn, traffic func() (traffic, bool), limit time.Duration) *watchedConn {
	return &watchedConn{Conn: conn, traffic: traffic, limit: limit}
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.explain("read", err)
}

func (c *watchedConn) Write(p []byte) (int, error) {
	c.begin()
	defer c.end()
	n, err := c.Conn.Write(p)
	return n, c.explain("write", err)
}

// CloseWrite sends FIN, which home is to acknowledge as well.
func (c *watchedConn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	c.begin()
	defer c.end()
	return c.explain("shutdown", half.CloseWrite())
}

// Close closes the connection. What waits is sent on in the background.
func (c *watchedConn) Close() error {
	c.mu.Lock()
	c.closed, c.looking = true, false
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	if stack, ok := c.Conn.(interface{ SetUserTimeout(time.Duration) error }); ok {
		_ = stack.SetUserTimeout(orphanTimeout) // or it is closed already
	}
	return c.Conn.Close()
}

// begin looks from now on, if nobody does.
func (c *watchedConn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing++
	if c.looking || c.closed {
		return
	}
	now, open := c.traffic()
	if !open {
		return
	}
	c.silence = silence{last: now}
	c.looking = true
	if c.timer == nil {
		c.timer = time.AfterFunc(c.interval(), c.look)
	} else {
		c.timer.Reset(c.interval())
	}
}

// end says that the stack has what was written.
func (c *watchedConn) end() {
	c.mu.Lock()
	c.writing--
	c.mu.Unlock()
}

func (c *watchedConn) interval() time.Duration { return max(c.limit/looks, leastLook) }

// look ends the connection if home has been silent for too long.
func (c *watchedConn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.looking {
		return
	}
	now, open := c.traffic()
	if !open || !now.waits && c.writing == 0 {
		c.looking = false
		return
	}
	if !c.silence.see(now, time.Now(), c.limit) {
		c.timer.Reset(c.interval())
		return
	}
	c.looking = false
	c.gone.Store(true)
	// Nobody is there for an orderly end.
	if conn, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		_ = conn.SetLinger(0)
	}
	_ = c.Conn.Close()
}

// explain says of a connection that was ended here what TCP says of one that it
// has ended itself, for the same reason.
func (c *watchedConn) explain(op string, err error) error {
	if err == nil || !c.gone.Load() {
		return err
	}
	return &net.OpError{
		Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(),
		Err: os.NewSyscallError(op, syscall.ETIMEDOUT),
	}
}
