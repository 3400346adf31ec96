package kernelns

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// unsentMax is how many bytes that TCP has not sent yet a connection takes
// (TCP_NOTSENT_LOWAT). What has been sent is bounded by the path; more than
// this on top would only wait here, in front of everything that the client
// does next. Less costs throughput where losses are to be repaired: with BBR at
// 433 Mbit/s over 31 ms and 0.1 % loss, 1 MiB carried 286 Mbit/s, 2 MiB 322 and
// no bound 322. Package relay goes on from here with what fits the connection's
// rate.
const unsentMax = 2 << 20

// errLeft means that a socket is of a place that the stack has left.
var errLeft = errors.New("the network namespace has been replaced meanwhile")

// openSockets are a stack's sockets, which end with it.
type openSockets struct {
	place *atomic.Pointer[place] // the stack's

	mu        sync.Mutex
	conns     map[*tcpConn]struct{}
	datagrams map[*udpConn]struct{}
	listeners map[listener]struct{}
	closed    bool
}

// tcpConn is a connection of the namespace. It is a *net.TCPConn in all, and
// so can be spliced.
type tcpConn struct {
	*net.TCPConn
	open   *openSockets
	place  *place
	client *clientRef
	once   sync.Once
}

// udpConn is a UDP socket of the namespace.
type udpConn struct {
	*net.UDPConn
	open      *openSockets
	place     *place
	client    *clientRef
	connected bool
	once      sync.Once
}

// clientRef is a socket's share in a client's address; nil is none.
type clientRef struct {
	clients *clients
	address netip.Addr
}

func (r *clientRef) leave() {
	if r != nil {
		r.clients.leave(r.address)
	}
}

// addTCP takes a connection of a place over, unless that has been left.
func (o *openSockets) addTCP(conn *net.TCPConn, at *place, client *clientRef) (*tcpConn, error) {
	c := &tcpConn{TCPConn: conn, open: o, place: at, client: client}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.check(at); err != nil {
		return nil, err
	}
	if o.conns == nil {
		o.conns = make(map[*tcpConn]struct{})
	}
	o.conns[c] = struct{}{}
	return c, nil
}

// addUDP is addTCP for a UDP socket.
func (o *openSockets) addUDP(conn *net.UDPConn, at *place, client *clientRef) (*udpConn, error) {
	c := &udpConn{UDPConn: conn, open: o, place: at, client: client, connected: conn.RemoteAddr() != nil}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.check(at); err != nil {
		return nil, err
	}
	if o.datagrams == nil {
		o.datagrams = make(map[*udpConn]struct{})
	}
	o.datagrams[c] = struct{}{}
	return c, nil
}

// check says why there can be no more sockets of a place. o.mu is held: what is
// added before the place is left is found by resetLeft.
func (o *openSockets) check(at *place) error {
	if o.closed {
		return net.ErrClosed
	}
	if o.place.Load() != at {
		return errLeft
	}
	return nil
}

func (o *openSockets) addListener(l listener) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return net.ErrClosed
	}
	if o.listeners == nil {
		o.listeners = make(map[listener]struct{})
	}
	o.listeners[l] = struct{}{}
	return nil
}

func (o *openSockets) removeListener(l listener) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.listeners, l)
}

func (o *openSockets) allListeners() []listener {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Keys(o.listeners))
}

// Close closes the connection.
func (c *tcpConn) Close() error {
	c.once.Do(func() {
		c.open.mu.Lock()
		delete(c.open.conns, c)
		c.open.mu.Unlock()
		defer c.client.leave()
	})
	return c.TCPConn.Close()
}

// WriteTo sends a datagram to an address. Go does not know of a socket that it
// has not connected itself that it is connected.
func (c *udpConn) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.connected {
		return 0, opError("write", "udp", c.LocalAddr(), to, net.ErrWriteToConnected)
	}
	return c.UDPConn.WriteTo(b, to)
}

// Close closes the socket.
func (c *udpConn) Close() error {
	c.once.Do(func() {
		c.open.mu.Lock()
		delete(c.open.datagrams, c)
		c.open.mu.Unlock()
		defer c.client.leave()
	})
	return c.UDPConn.Close()
}

// resetAll resets every connection and closes every UDP socket that does not
// listen.
func (o *openSockets) resetAll() {
	o.resetThose(func(*tcpConn) bool { return true }, func(*udpConn) bool { return true })
}

// resetLeft is resetAll for those that are not of the stack's present place.
func (o *openSockets) resetLeft() {
	present := o.place.Load()
	o.resetThose(func(c *tcpConn) bool { return c.place != present }, func(c *udpConn) bool { return c.place != present })
}

// reset resets the connections, and closes the connected UDP sockets, of whose
// addresses is says so.
func (o *openSockets) reset(is func(local, remote netip.Addr) bool) int {
	ip := func(address net.Addr) netip.Addr {
		switch address := address.(type) {
		case *net.TCPAddr:
			return address.AddrPort().Addr().Unmap()
		case *net.UDPAddr:
			return address.AddrPort().Addr().Unmap()
		}
		return netip.Addr{}
	}
	return o.resetThose(
		func(c *tcpConn) bool { return is(ip(c.LocalAddr()), ip(c.RemoteAddr())) },
		func(c *udpConn) bool { return c.connected && is(ip(c.LocalAddr()), ip(c.RemoteAddr())) },
	)
}

// resetThose resets some connections, closes some UDP sockets, and returns how many
// there were.
func (o *openSockets) resetThose(stream func(*tcpConn) bool, datagram func(*udpConn) bool) int {
	var conns []*tcpConn
	var datagrams []*udpConn
	o.mu.Lock()
	for c := range o.conns {
		if stream(c) {
			conns = append(conns, c)
		}
	}
	for c := range o.datagrams {
		if datagram(c) {
			datagrams = append(datagrams, c)
		}
	}
	o.mu.Unlock()
	for _, c := range conns {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	for _, c := range datagrams {
		_ = c.Close()
	}
	return len(conns) + len(datagrams)
}

// close ends all sockets, and lets none be added.
func (o *openSockets) close() {
	o.mu.Lock()
	o.closed = true
	listeners := o.listeners
	o.listeners = nil
	o.mu.Unlock()
	// First, or they would accept more.
	for l := range listeners {
		l.stop()
	}
	o.resetAll()
}

// sockaddr is the kernel's form of an address.
func sockaddr(address netip.AddrPort, domain int) unix.Sockaddr {
	if domain == unix.AF_INET {
		sa := &unix.SockaddrInet4{Port: int(address.Port())}
		if address.Addr().IsValid() {
			sa.Addr = address.Addr().As4()
		}
		return sa
	}
	sa := &unix.SockaddrInet6{Port: int(address.Port())}
	if address.Addr().IsValid() {
		sa.Addr = address.Addr().As16()
	}
	return sa
}

// opError makes the error of a socket operation. A nil err stays nil.
func opError(op, network string, source, addr net.Addr, err error) error {
	if err == nil {
		return nil
	}
	var known *net.OpError
	if errors.As(err, &known) {
		return err
	}
	if number, ok := err.(unix.Errno); ok {
		err = os.NewSyscallError(op, number)
	}
	return &net.OpError{Op: op, Net: network, Source: source, Addr: addr, Err: err}
}

// Interface guards
var (
	_ netstack.TCPConn = (*tcpConn)(nil)
	_ netstack.UDPConn = (*udpConn)(nil)
)
