package kernelns

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// clientMemory is for how long packets to a client's address are still taken
// when its last socket has been closed: TCP says goodbye in the meantime, and
// remembers the connection (tcp_fin_timeout and TIME_WAIT, 60 s each).
const clientMemory = 2 * time.Minute

// clients are the addresses that are not the stack's own and that sockets of
// it have nevertheless, for the sake of transparent relays. Packets to such an
// address are taken for as long as there is one: a route makes it local for
// what comes in by the TUN.
type clients struct {
	namespace *namespace

	mu     sync.Mutex
	known  map[netip.Addr]*client
	closed bool
}

type client struct {
	sockets int
	leaving *time.Timer // nil while there are sockets
}

func newClients(n *namespace) *clients {
	return &clients{namespace: n, known: make(map[netip.Addr]*client)}
}

// enter makes address usable. Each success is to be followed by one leave.
func (c *clients) enter(address netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.known[address]; known != nil {
		known.sockets++
		if known.leaving != nil {
			known.leaving.Stop()
			known.leaving = nil
		}
		return nil
	}
	if err := c.namespace.setRoute(inboundRoute(address)); err != nil {
		return err
	}
	c.known[address] = &client{sockets: 1}
	return nil
}

// leave says that a socket with address has been closed.
func (c *clients) leave(address netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.known[address]
	known.sockets--
	if known.sockets == 0 && !c.closed {
		known.leaving = time.AfterFunc(clientMemory, func() { c.forget(address, known) })
	}
}

func (c *clients) forget(address netip.Addr, left *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.known[address] != left || left.sockets > 0 {
		return
	}
	delete(c.known, address)
	// It fails when the namespace is gone, and the route with it.
	_ = c.namespace.removeRoute(inboundRoute(address))
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, known := range c.known {
		if known.leaving != nil {
			known.leaving.Stop()
		}
	}
}

// inboundRoute lets packets to address in.
func inboundRoute(address netip.Addr) route {
	return route{
		family: familyOf(address),
		kind:   unix.RTN_LOCAL,
		table:  inboundTable,
		to:     netip.PrefixFrom(address, address.BitLen()),
		index:  loopbackIndex,
	}
}
