package kernelns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/holder"
)

// blanksKept is how many sockets of a kind wait to be used, so that a dial
// need not ask a holder. When half of them are gone, more are asked for.
const blanksKept = 32

// blanks is a stock of sockets of one kind.
type blanks struct {
	namespace    *namespace
	domain, kind int

	mu     sync.Mutex
	stock  []int
	closed bool

	// waiting are those who found the stock empty, in the order in which they
	// came. Each has room for its socket, or for why there is none.
	waiting []chan taken

	// filling is whether sockets are being asked for, as they are while
	// anybody waits. Only one asks, however many wait.
	filling bool
	fills   sync.WaitGroup
}

type taken struct {
	fd  int
	err error
}

// take returns a socket that nobody else has. It is the caller's to close.
func (b *blanks) take(ctx context.Context) (int, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return -1, net.ErrClosed
	}
	if left := len(b.stock); left > 0 {
		fd := b.stock[left-1]
		b.stock = b.stock[:left-1]
		b.fillIfLow()
		b.mu.Unlock()
		return fd, nil
	}
	wait := make(chan taken, 1)
	b.waiting = append(b.waiting, wait)
	b.fillIfLow()
	b.mu.Unlock()
	select {
	case got := <-wait:
		return got.fd, got.err
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, wait); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
		return -1, ctx.Err()
	}
	// It came at the last moment.
	got := <-wait
	return got.fd, got.err
}

// fillIfLow has the stock filled if that is not under way. b.mu is held.
func (b *blanks) fillIfLow() {
	if b.low() && !b.filling {
		b.filling = true
		b.fills.Go(b.fill)
	}
}

// low says whether there is reason to ask for sockets. b.mu is held.
func (b *blanks) low() bool {
	return !b.closed && (len(b.waiting) > 0 || len(b.stock) < blanksKept/2)
}

// fill asks for sockets until there are enough, or there are none to be had,
// which those who wait are told. Others find out when they need one.
func (b *blanks) fill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { b.filling = false }()
	for b.low() {
		missing := min(blanksKept-len(b.stock)+len(b.waiting), holder.MaxSockets)
		b.mu.Unlock()
		fds, err := b.namespace.sockets(b.domain, b.kind, missing)
		b.mu.Lock()
		if err != nil {
			b.refuse(err)
			return
		}
		b.put(fds)
	}
}

// put hands sockets to those who wait, and keeps the others. b.mu is held.
func (b *blanks) put(fds []int) {
	if b.closed {
		holder.CloseAll(fds)
		return
	}
	served := min(len(fds), len(b.waiting))
	for i, wait := range b.waiting[:served] {
		wait <- taken{fd: fds[i]}
	}
	b.waiting = slices.Delete(b.waiting, 0, served)
	b.stock = append(b.stock, fds[served:]...)
}

// refuse tells those who wait why there are no sockets. b.mu is held.
func (b *blanks) refuse(err error) {
	for _, wait := range b.waiting {
		wait <- taken{fd: -1, err: err}
	}
	b.waiting = nil
}

func (b *blanks) close() {
	b.mu.Lock()
	b.closed = true
	stock := b.stock
	b.stock = nil
	b.refuse(net.ErrClosed)
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
