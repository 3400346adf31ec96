package gvisor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// writeSize is the most that goes to the stack at once: one superpacket.
// Larger pieces make the stack split them unevenly and measured half as fast.
const writeSize = 32 << 10

// Keepalive of a connection when the configuration leaves a value at 0, as in
// the net package.
const (
	keepAliveIdle     = 15 * time.Second
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 9
)

// hangUp are the events that every waiter wants to know of.
const hangUp = waiter.EventHUp | waiter.EventErr

// tcpConn is a connection of the stack.
type tcpConn struct {
	socket
	local, remote net.Addr

	// readable and writable get a token at every event that may let a Read
	// or a Write go on. The entries stay registered for the life of the
	// connection: to register one for each wait costs allocations.
	readEntry, writeEntry waiter.Entry
	readable, writable    chan struct{}

	readDeadline, writeDeadline deadline

	// readMu lets one Read at a time wait for a token; writeMu does so for
	// Write, and keeps its bytes together. They also guard what is passed to
	// the stack by pointer and would escape otherwise. The stack keeps from
	// for longer than the connection, which therefore must not contain it.
	readMu  sync.Mutex
	into    tcpip.SliceWriter
	writeMu sync.Mutex
	from    *bytes.Reader

	closed    chan struct{}
	isClosed  atomic.Bool
	closeOnce sync.Once
}

func newTCPConn(sock socket) *tcpConn {
	c := &tcpConn{socket: sock, from: new(bytes.Reader), closed: make(chan struct{})}
	c.readEntry, c.readable = newEntry(waiter.ReadableEvents | hangUp)
	c.writeEntry, c.writable = newEntry(waiter.WritableEvents | hangUp)
	c.queue.EventRegister(&c.readEntry)
	c.queue.EventRegister(&c.writeEntry)
	return c
}

// newEntry returns an entry for a waiter queue and the channel that it gives
// tokens to.
func newEntry(mask waiter.EventMask) (waiter.Entry, chan struct{}) {
	entry, tokens := waiter.NewChannelEntry(mask)
	return entry, tokens
}

// connected waits for the end of the handshake.
func (c *tcpConn) connected(ctx context.Context) error {
	for c.endpoint.Readiness(waiter.WritableEvents|hangUp) == 0 {
		select {
		case <-c.writable:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := c.endpoint.LastError(); err != nil {
		if _, aborted := err.(*tcpip.ErrAborted); aborted {
			return net.ErrClosed
		}
		return errno(err)
	}
	c.noteAddresses()
	return nil
}

// noteAddresses keeps the addresses, which the stack forgets when the
// connection ends.
func (c *tcpConn) noteAddresses() {
	local, _ := c.endpoint.GetLocalAddress()
	remote, _ := c.endpoint.GetRemoteAddress()
	c.local = net.TCPAddrFromAddrPort(addrPortOf(local))
	c.remote = net.TCPAddrFromAddrPort(addrPortOf(remote))
}

// abandon closes a connection that was never given to anybody.
func (c *tcpConn) abandon() { c.endpoint.Close() }

// Read reads what has arrived, and waits for something if there is nothing.
func (c *tcpConn) Read(b []byte) (int, error) {
	n, err := c.read(b)
	if err != nil && err != io.EOF {
		err = opError("read", "tcp", c.local, c.remote, err)
	}
	return n, err
}

func (c *tcpConn) read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	expired := c.readDeadline.done()
	select {
	case <-expired:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	if c.isClosed.Load() {
		return 0, net.ErrClosed
	}
	if len(b) == 0 {
		return 0, nil
	}
	for {
		c.into = b
		result, err := c.endpoint.Read(&c.into, tcpip.ReadOptions{})
		c.into = nil
		switch err.(type) {
		case nil:
			c.endpoint.ModerateRecvBuf(result.Count)
			return result.Count, nil
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive:
			if c.isClosed.Load() {
				return 0, net.ErrClosed
			}
			return 0, io.EOF
		default:
			if c.isClosed.Load() {
				return 0, net.ErrClosed
			}
			return 0, errno(err)
		}
		select {
		case <-c.readable:
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
}

// Write queues b to be sent, and waits for room in the send buffer.
func (c *tcpConn) Write(b []byte) (int, error) {
	n, err := c.write(b)
	if err != nil {
		err = opError("write", "tcp", c.local, c.remote, err)
	}
	return n, err
}

func (c *tcpConn) write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	expired := c.writeDeadline.done()
	written := 0
	for {
		select {
		case <-expired:
			return written, os.ErrDeadlineExceeded
		default:
		}
		if c.isClosed.Load() {
			return written, net.ErrClosed
		}
		if written == len(b) {
			return written, nil
		}
		c.from.Reset(b[written:min(len(b), written+writeSize)])
		n, err := c.endpoint.Write(c.from, tcpip.WriteOptions{})
		c.from.Reset(nil)
		written += int(n)
		switch err.(type) {
		case nil:
			if written == len(b) {
				return written, nil
			}
			continue
		case *tcpip.ErrWouldBlock:
		default:
			if c.isClosed.Load() {
				return written, net.ErrClosed
			}
			return written, errno(err)
		}
		select {
		case <-c.writable:
		case <-expired:
			return written, os.ErrDeadlineExceeded
		case <-c.closed:
			return written, net.ErrClosed
		}
	}
}

// Close sends what is queued and then FIN, in the background, or RST if
// SetLinger(0) was called or something was left unread.
func (c *tcpConn) Close() error {
	err := net.ErrClosed
	c.closeOnce.Do(func() {
		err = nil
		c.isClosed.Store(true)
		close(c.closed)
		c.readDeadline.set(time.Time{})
		c.writeDeadline.set(time.Time{})
		c.endpoint.Close()
		// The endpoint lives on, up to a minute or more.
		c.queue.EventUnregister(&c.readEntry)
		c.queue.EventUnregister(&c.writeEntry)
	})
	return opError("close", "tcp", c.local, c.remote, err)
}

// CloseRead makes reads end. What still arrives is dropped.
func (c *tcpConn) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

// CloseWrite sends FIN after what is queued. Reads go on.
func (c *tcpConn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

func (c *tcpConn) shutdown(flags tcpip.ShutdownFlags) error {
	err := net.ErrClosed
	if !c.isClosed.Load() {
		err = errno(c.endpoint.Shutdown(flags))
	}
	return opError("shutdown", "tcp", c.local, c.remote, err)
}

// SetLinger with 0 makes Close send RST. A negative number restores the
// orderly close, which is what positive numbers mean too: Close never waits.
func (c *tcpConn) SetLinger(seconds int) error {
	if c.isClosed.Load() {
		return opError("set", "tcp", c.local, c.remote, net.ErrClosed)
	}
	c.endpoint.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: seconds == 0})
	return nil
}

// SetKeepAliveConfig has the meaning of net.TCPConn's: values of 0 take the
// defaults of 15 s, 15 s and 9, negative ones leave what is.
func (c *tcpConn) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	err := c.setKeepAlive(config)
	return opError("set", "tcp", c.local, c.remote, err)
}

func (c *tcpConn) setKeepAlive(config net.KeepAliveConfig) error {
	if c.isClosed.Load() {
		return net.ErrClosed
	}
	orDefault := func(value, fallback time.Duration) time.Duration {
		if value == 0 {
			return fallback
		}
		return value
	}
	if idle := orDefault(config.Idle, keepAliveIdle); idle > 0 {
		option := tcpip.KeepaliveIdleOption(idle)
		if err := c.endpoint.SetSockOpt(&option); err != nil {
			return errno(err)
		}
	}
	if interval := orDefault(config.Interval, keepAliveInterval); interval > 0 {
		option := tcpip.KeepaliveIntervalOption(interval)
		if err := c.endpoint.SetSockOpt(&option); err != nil {
			return errno(err)
		}
	}
	count := config.Count
	if count == 0 {
		count = keepAliveCount
	}
	if count > 0 {
		if err := c.endpoint.SetSockOptInt(tcpip.KeepaliveCountOption, count); err != nil {
			return errno(err)
		}
	}
	c.endpoint.SocketOptions().SetKeepAlive(config.Enable)
	return nil
}

// SetUserTimeout bounds how long what has been sent may go unacknowledged
// before the connection ends (RFC 5482; TCP_USER_TIMEOUT in Linux). 0 leaves
// that to the stack, which gives up after about a quarter of an hour. It counts
// the time as well in which the other end answers that it has no room.
func (c *tcpConn) SetUserTimeout(timeout time.Duration) error {
	err := c.setUserTimeout(timeout)
	return opError("set", "tcp", c.local, c.remote, err)
}

func (c *tcpConn) setUserTimeout(timeout time.Duration) error {
	if c.isClosed.Load() {
		return net.ErrClosed
	}
	option := tcpip.TCPUserTimeoutOption(max(0, timeout))
	if err := c.endpoint.SetSockOpt(&option); err != nil {
		return errno(err)
	}
	return nil
}

// Traffic returns how often the other end has been asked for an answer that was
// due, by sending again or by asking whether it has room, and how many segments
// of it have been heard. It fails when the connection is closed.
func (c *tcpConn) Traffic() (asked, heard uint64, err error) {
	stats, ok := c.endpoint.Stats().(*tcp.Stats)
	if c.isClosed.Load() || !ok {
		return 0, 0, opError("get", "tcp", c.local, c.remote, net.ErrClosed)
	}
	return stats.SendErrors.Timeouts.Value(), stats.SegmentsReceived.Value(), nil
}

// LocalAddr returns the *net.TCPAddr of this end.
func (c *tcpConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the *net.TCPAddr of the other end.
func (c *tcpConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *tcpConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline makes reads end with os.ErrDeadlineExceeded at t.
func (c *tcpConn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.readDeadline, t) }

// SetWriteDeadline makes writes end with os.ErrDeadlineExceeded at t.
func (c *tcpConn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeDeadline, t) }

func (c *tcpConn) setDeadline(d *deadline, t time.Time) error {
	if c.isClosed.Load() {
		return opError("set", "tcp", c.local, c.remote, net.ErrClosed)
	}
	d.set(t)
	return nil
}

var _ netstack.TCPConn = (*tcpConn)(nil)
