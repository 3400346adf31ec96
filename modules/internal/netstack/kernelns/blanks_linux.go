package kernelns

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/holder"
)

// blanksKept is how many sockets of a kind wait to be used, so that a dial
// need not ask a holder. A burst of more asks once for every so many.
const blanksKept = 32

// blanks is a stock of sockets of one kind.
type blanks struct {
	namespace    *namespace
	domain, kind int

	mu      sync.Mutex
	stock   []int
	filling bool
	closed  bool
	fills   sync.WaitGroup
}

// take returns a socket that nobody else has. It is the caller's to close.
func (b *blanks) take() (int, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return -1, net.ErrClosed
	}
	if left := len(b.stock); left > 0 {
		fd := b.stock[left-1]
		b.stock = b.stock[:left-1]
		if left-1 < blanksKept/2 && !b.filling {
			b.filling = true
			b.fills.Go(b.fill)
		}
		b.mu.Unlock()
		return fd, nil
	}
	b.mu.Unlock()
	fds, err := b.namespace.sockets(b.domain, b.kind, blanksKept)
	if err != nil {
		return -1, err
	}
	b.put(fds[1:])
	return fds[0], nil
}

// fill fills the stock up. If that fails, the next take will say why.
func (b *blanks) fill() {
	b.mu.Lock()
	missing := blanksKept - len(b.stock)
	b.mu.Unlock()
	if missing > 0 {
		if fds, err := b.namespace.sockets(b.domain, b.kind, missing); err == nil {
			b.put(fds)
		}
	}
	b.mu.Lock()
	b.filling = false
	b.mu.Unlock()
}

// put adds sockets to the stock as far as there is room.
func (b *blanks) put(fds []int) {
	b.mu.Lock()
	room := 0
	if !b.closed {
		room = min(max(blanksKept-len(b.stock), 0), len(fds))
		b.stock = append(b.stock, fds[:room]...)
	}
	b.mu.Unlock()
	holder.CloseAll(fds[room:])
}

func (b *blanks) close() {
	b.mu.Lock()
	b.closed = true
	stock := b.stock
	b.stock = nil
	b.mu.Unlock()
	holder.CloseAll(stock)
	b.fills.Wait()
}

// stocks are the stocks of a namespace.
type stocks struct{ tcp4, tcp6, udp4, udp6 *blanks }

func newStocks(n *namespace) stocks {
	kind := func(domain, kind int) *blanks { return &blanks{namespace: n, domain: domain, kind: kind} }
	return stocks{
		tcp4: kind(unix.AF_INET, unix.SOCK_STREAM), tcp6: kind(unix.AF_INET6, unix.SOCK_STREAM),
		udp4: kind(unix.AF_INET, unix.SOCK_DGRAM), udp6: kind(unix.AF_INET6, unix.SOCK_DGRAM),
	}
}

// of is the stock for sockets of a kind with addresses like this one.
func (s stocks) of(kind int, address netip.Addr) *blanks {
	switch {
	case kind == unix.SOCK_STREAM && address.Is4():
		return s.tcp4
	case kind == unix.SOCK_STREAM:
		return s.tcp6
	case address.Is4():
		return s.udp4
	}
	return s.udp6
}

func (s stocks) close() {
	for _, b := range []*blanks{s.tcp4, s.tcp6, s.udp4, s.udp6} {
		b.close()
	}
}
