package gvisor

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// udpConn is a UDP socket of the stack, connected if remote is valid.
type udpConn struct {
	socket
	local  netip.AddrPort
	remote netip.AddrPort

	readEntry, writeEntry waiter.Entry
	readable, writable    chan struct{}

	readDeadline, writeDeadline deadline

	// As in tcpConn.
	readMu  sync.Mutex
	into    tcpip.SliceWriter
	writeMu sync.Mutex
	from    bytes.Reader

	closed    chan struct{}
	isClosed  atomic.Bool
	closeOnce sync.Once
}

// newUDPConn makes a conn of a socket that was bound to local.
func newUDPConn(sock socket, local netip.Addr, remote netip.AddrPort) *udpConn {
	c := &udpConn{socket: sock, remote: remote, closed: make(chan struct{})}
	c.readEntry, c.readable = newEntry(waiter.ReadableEvents | hangUp)
	c.writeEntry, c.writable = newEntry(waiter.WritableEvents | hangUp)
	c.queue.EventRegister(&c.readEntry)
	c.queue.EventRegister(&c.writeEntry)
	c.local = boundAddr(c.endpoint, local)
	return c
}

// boundAddr returns the address of a socket that was bound to asked. The stack
// leaves the unspecified address empty.
func boundAddr(endpoint tcpip.Endpoint, asked netip.Addr) netip.AddrPort {
	local, _ := endpoint.GetLocalAddress()
	if local.Addr.Len() != 0 {
		return addrPortOf(local)
	}
	if !asked.IsValid() {
		asked = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(asked, local.Port)
}

// Read reads one datagram; what does not fit in b is lost.
func (c *udpConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFromUDPAddrPort(b)
	return n, err
}

// ReadFrom reads one datagram and returns its sender, a *net.UDPAddr.
func (c *udpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// ReadFromUDPAddrPort is ReadFrom without an allocation, as net.UDPConn's.
func (c *udpConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.read(b)
	if err != nil {
		return n, from, opError("read", "udp", c.LocalAddr(), c.RemoteAddr(), err)
	}
	return n, from, nil
}

func (c *udpConn) read(b []byte) (int, netip.AddrPort, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	expired := c.readDeadline.done()
	wanted := len(b)
	if wanted == 0 {
		// The stack takes an empty buffer for an error.
		b = make([]byte, 1)
	}
	for {
		select {
		case <-expired:
			return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, netip.AddrPort{}, net.ErrClosed
		default:
		}
		c.into = b
		result, err := c.endpoint.Read(&c.into, tcpip.ReadOptions{NeedRemoteAddr: true})
		c.into = nil
		switch err.(type) {
		case nil:
			return min(result.Count, wanted), addrPortOf(result.RemoteAddr), nil
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive:
			return 0, netip.AddrPort{}, net.ErrClosed
		default:
			return 0, netip.AddrPort{}, errno(err)
		}
		select {
		case <-c.readable:
		case <-expired:
		case <-c.closed:
		}
	}
}

// Write sends one datagram to the address that the socket is connected to.
func (c *udpConn) Write(b []byte) (int, error) {
	if !c.remote.IsValid() {
		return 0, opError("write", "udp", c.LocalAddr(), nil, syscall.EDESTADDRREQ)
	}
	n, err := c.write(b, nil)
	if err != nil {
		return n, opError("write", "udp", c.LocalAddr(), c.RemoteAddr(), err)
	}
	return n, nil
}

// WriteTo sends one datagram to addr. A connected socket refuses it, as
// net.UDPConn does.
func (c *udpConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok || to == nil {
		return 0, opError("write", "udp", c.LocalAddr(), addr, fmt.Errorf("not a UDP address: %v", addr))
	}
	return c.WriteToUDPAddrPort(b, to.AddrPort())
}

// WriteToUDPAddrPort is WriteTo without an allocation, as net.UDPConn's.
func (c *udpConn) WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error) {
	addr = unmap(addr)
	n, err := c.writeTo(b, addr)
	if err != nil {
		return n, opError("write", "udp", c.LocalAddr(), net.UDPAddrFromAddrPort(addr), err)
	}
	return n, nil
}

func (c *udpConn) writeTo(b []byte, addr netip.AddrPort) (int, error) {
	to := addr.Addr()
	switch {
	case c.remote.IsValid():
		return 0, net.ErrWriteToConnected
	case !to.IsValid() || to.IsUnspecified() || to.IsLoopback() || to.IsMulticast() || to.Zone() != "":
		return 0, syscall.ENETUNREACH
	case c.local.Addr().Is4() && !to.Is4():
		return 0, syscall.EAFNOSUPPORT
	case c.local.Addr().Is6() && !c.local.Addr().IsUnspecified() && !to.Is6():
		return 0, syscall.ENETUNREACH
	}
	full := fullAddress(addr)
	return c.write(b, &full)
}

func (c *udpConn) write(b []byte, to *tcpip.FullAddress) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	expired := c.writeDeadline.done()
	refused := false
	for {
		select {
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, net.ErrClosed
		default:
		}
		c.from.Reset(b)
		n, err := c.endpoint.Write(&c.from, tcpip.WriteOptions{To: to})
		c.from.Reset(nil)
		switch err.(type) {
		case nil:
			return int(n), nil
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrNoBufferSpace:
			// Nobody reads the device. A datagram may be lost.
			return len(b), nil
		case *tcpip.ErrClosedForSend:
			return 0, net.ErrClosed
		case *tcpip.ErrConnectionRefused:
			// The answer to an earlier datagram, which the stack forgets when
			// it has told it.
			if to == nil || refused {
				return 0, errno(err)
			}
			refused = true
			continue
		default:
			return 0, errno(err)
		}
		select {
		case <-c.writable:
		case <-expired:
		case <-c.closed:
		}
	}
}

// SetReadBuffer sets how many bytes wait for a late reader, within the
// stack's bounds.
func (c *udpConn) SetReadBuffer(bytes int) error {
	if c.isClosed.Load() {
		return opError("set", "udp", c.LocalAddr(), c.RemoteAddr(), net.ErrClosed)
	}
	c.endpoint.SocketOptions().SetReceiveBufferSize(int64(bytes), true)
	return nil
}

// SetWriteBuffer sets how many bytes may be on their way to the device,
// within the stack's bounds.
func (c *udpConn) SetWriteBuffer(bytes int) error {
	if c.isClosed.Load() {
		return opError("set", "udp", c.LocalAddr(), c.RemoteAddr(), net.ErrClosed)
	}
	c.endpoint.SocketOptions().SetSendBufferSize(int64(bytes), true)
	return nil
}

// Close closes the socket and wakes whoever waits for it.
func (c *udpConn) Close() error {
	err := net.ErrClosed
	c.closeOnce.Do(func() {
		err = nil
		c.isClosed.Store(true)
		close(c.closed)
		c.readDeadline.set(time.Time{})
		c.writeDeadline.set(time.Time{})
		c.endpoint.Close()
	})
	return opError("close", "udp", c.LocalAddr(), c.RemoteAddr(), err)
}

// LocalAddr returns the *net.UDPAddr of the socket.
func (c *udpConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// RemoteAddr returns the *net.UDPAddr that the socket is connected to, or nil.
func (c *udpConn) RemoteAddr() net.Addr {
	if !c.remote.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(c.remote)
}

// SetDeadline sets both deadlines.
func (c *udpConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline makes reads end with os.ErrDeadlineExceeded at t.
func (c *udpConn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.readDeadline, t) }

// SetWriteDeadline makes writes end with os.ErrDeadlineExceeded at t.
func (c *udpConn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeDeadline, t) }

func (c *udpConn) setDeadline(d *deadline, t time.Time) error {
	if c.isClosed.Load() {
		return opError("set", "udp", c.LocalAddr(), c.RemoteAddr(), net.ErrClosed)
	}
	d.set(t)
	return nil
}

var _ netstack.UDPConn = (*udpConn)(nil)
