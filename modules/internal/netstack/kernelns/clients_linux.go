package kernelns

import (
	"container/list"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

const (
	// clientMemory is for how long packets to a client's address are still
	// taken when its last socket has been closed: TCP says goodbye in the
	// meantime, and remembers the connection (tcp_fin_timeout and TIME_WAIT,
	// 60 s each).
	clientMemory = 2 * time.Minute

	// clientsMax is how many addresses there may be. Each costs the kernel a
	// route, and one stranger with an IPv6 /64 could bring hundreds of
	// thousands within clientMemory.
	clientsMax = 16384

	// forgetBatch is how many addresses are forgotten at a time. Dials wait
	// meanwhile.
	forgetBatch = 64
)

// clients are the addresses that are not the stack's own and that sockets of
// it have nevertheless, for the sake of transparent relays. Packets to such an
// address are taken for as long as there is one: a route makes it local for
// what comes in by the TUN.
type clients struct {
	namespace *namespace
	max       int
	memory    time.Duration

	mu     sync.Mutex
	known  map[netip.Addr]*client
	own    []netip.Prefix // whose routes are the place's
	left   list.List      // of those without a socket, who left first in front
	timer  *time.Timer    // nil before the first left
	armed  bool           // the timer will run forgetLeft
	closed bool
}

type client struct {
	address netip.Addr
	sockets int
	since   time.Time     // when the last socket was closed
	leaving *list.Element // in left; nil while there are sockets
}

func newClients(n *namespace) *clients {
	return &clients{namespace: n, max: clientsMax, memory: clientMemory, known: make(map[netip.Addr]*client)}
}

// enter makes address usable. Each success is to be followed by one leave. If
// there is no room for another address, those go that have been without a
// socket for longest; with none of them, it is netstack.ErrTooManyClients.
func (c *clients) enter(address netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.known[address]; known != nil {
		known.sockets++
		if known.leaving != nil {
			c.left.Remove(known.leaving)
			known.leaving = nil
		}
		return nil
	}
	for len(c.known) >= c.max {
		longest := c.left.Front()
		if longest == nil {
			return netstack.ErrTooManyClients
		}
		c.forget(longest.Value.(*client))
	}
	if err := c.namespace.setRoute(inboundRoute(address)); err != nil {
		return err
	}
	c.known[address] = &client{address: address, sockets: 1}
	return nil
}

// leave says that a socket with address has been closed.
func (c *clients) leave(address netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.known[address]
	known.sockets--
	if known.sockets > 0 || c.closed {
		return
	}
	known.since = time.Now()
	known.leaving = c.left.PushBack(known)
	c.arm()
}

// arm sets the timer for whoever has been without a socket for longest, unless
// it is set. c.mu is held.
func (c *clients) arm() {
	longest := c.left.Front()
	if longest == nil || c.armed {
		return
	}
	wait := time.Until(longest.Value.(*client).since.Add(c.memory))
	if c.timer == nil {
		c.timer = time.AfterFunc(wait, c.forgetLeft)
	} else {
		c.timer.Reset(wait)
	}
	c.armed = true
}

// forgetLeft forgets those whose time is over.
func (c *clients) forgetLeft() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	if c.closed {
		return
	}
	for range forgetBatch {
		longest := c.left.Front()
		if longest == nil || time.Since(longest.Value.(*client).since) < c.memory {
			break
		}
		c.forget(longest.Value.(*client))
	}
	c.arm()
}

// forget forgets one that is in left. c.mu is held.
func (c *clients) forget(left *client) {
	c.left.Remove(left.leaving)
	delete(c.known, left.address)
	if netstack.HasAddress(c.own, left.address) {
		return
	}
	// It fails when the namespace is gone, and the route with it.
	_ = c.namespace.removeRoute(inboundRoute(left.address))
}

// setOwn says which addresses are the stack's own: a client's may become one, and one that
// is one no longer may still be a client's.
func (c *clients) setOwn(addresses []netip.Prefix) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	former := c.own
	c.own = slices.Clone(addresses)
	var errs []error
	for _, prefix := range former {
		if address := prefix.Addr(); c.known[address] != nil && !netstack.HasAddress(c.own, address) {
			errs = append(errs, c.namespace.setRoute(inboundRoute(address)))
		}
	}
	return errors.Join(errs...)
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
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
