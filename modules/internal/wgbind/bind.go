// Package wgbind is the outer side of a tunnel: a conn.Bind over
// wireguard-go's own that can open a new port beside the one in use, so that
// a busy port is found before anything is given up, that sends a handshake
// again until it is answered, and that gives errors a person can act on.
package wgbind

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
)

// Bind is a conn.Bind whose sockets can be opened ahead of time. The zero
// value is not usable; call New.
type Bind struct {
	mu       sync.RWMutex // guards the fields, not the use of the binds
	current  conn.Bind    // never nil; open or not
	prepared *prepared    // nil unless Prepare was called and not yet used

	// fragments says why packets may leave in fragments, or is nil.
	fragments error

	resender resender
	strays   strays

	// failed has why a socket is dead.
	failed chan error
}

// prepared is a set of sockets that is open but not yet read from.
type prepared struct {
	bind     conn.Bind
	receives []conn.ReceiveFunc
	port     uint16
}

var _ conn.Bind = (*Bind)(nil)

// New returns a Bind without a socket.
func New() *Bind {
	return &Bind{
		current: conn.NewDefaultBind(),
		strays:  strays{from: make(chan netip.AddrPort, 1)},
		failed:  make(chan error, 1),
	}
}

// Prepare opens port, or any free port if it is 0, beside the sockets in use,
// and returns the port that it got. The next Open of that port takes these
// sockets over. A second Prepare closes what the first one opened.
func (b *Bind) Prepare(port uint16) (uint16, error) {
	bind, receives, actual, err := openFamilies(port)
	if err != nil {
		return 0, listenError(port, err)
	}
	fragments := forbidFragments(bind)
	b.mu.Lock()
	b.fragments = fragments
	former := b.prepared
	b.prepared = &prepared{bind: bind, receives: receives, port: actual}
	b.mu.Unlock()
	return actual, former.close()
}

// Discard closes what Prepare opened and Open has not taken over.
func (b *Bind) Discard() error {
	b.mu.Lock()
	former := b.prepared
	b.prepared = nil
	b.mu.Unlock()
	return former.close()
}

func (p *prepared) close() error {
	if p == nil {
		return nil
	}
	return p.bind.Close()
}

// Open implements conn.Bind. It uses the prepared sockets if they are of this
// port.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.prepared; p != nil && p.port == port {
		b.current, b.prepared = p.bind, nil
		return b.watch(p.receives), p.port, nil
	}
	bind, receives, actual, err := openFamilies(port)
	if err != nil {
		return nil, 0, listenError(port, err)
	}
	b.current = bind
	b.fragments = forbidFragments(b.current)
	return b.watch(receives), actual, nil
}

// watch wraps the functions that receive from sockets which have been opened.
func (b *Bind) watch(receives []conn.ReceiveFunc) []conn.ReceiveFunc {
	return b.lasting(b.strays.watch(b.resender.watch(b, receives)))
}

// Close implements conn.Bind. Prepared sockets stay open: wireguard-go closes
// its bind each time before it opens the next port.
func (b *Bind) Close() error {
	b.resender.stop()
	return b.bind().Close()
}

// SetMark implements conn.Bind.
func (b *Bind) SetMark(mark uint32) error {
	return b.bind().SetMark(mark)
}

// MayFragment says why this system may send packets in fragments, or returns
// nil if it sends them whole or not at all.
func (b *Bind) MayFragment() error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.fragments
}

// Send implements conn.Bind. A packet that is larger than the interface's MTU
// is lost, as it would be farther along the path, and that is no error. Where the
// address is gone at which the peer has called, it is sent from another.
func (b *Bind) Send(bufs [][]byte, endpoint conn.Endpoint) error {
	bind := b.bind()
	if diverted := b.resender.sent(bind, bufs, endpoint); diverted != nil && bind.Send(bufs, diverted) == nil {
		return nil
	}
	err := bind.Send(bufs, endpoint)
	if err != nil && sourceLost(err, endpoint.SrcIP()) {
		endpoint = anySource(bind, endpoint)
		err = bind.Send(bufs, endpoint)
	}
	// For a batch whose segments are too large, Linux says EINVAL before 6.14.
	if err == nil || !errors.Is(err, syscall.EMSGSIZE) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	// It has stopped at the first that is too large, and has not said which
	// that was. One that is sent twice is a replay, which is dropped.
	for i := range bufs {
		if err := bind.Send(bufs[i:i+1], endpoint); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
			return err
		}
	}
	return nil
}

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	return b.bind().ParseEndpoint(s)
}

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int {
	return b.bind().BatchSize()
}

func (b *Bind) bind() conn.Bind {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.current
}

// listenError says what can be done about a port that cannot be opened.
func listenError(port uint16, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listening on UDP port %d: another program has this port, perhaps another WireGuard; stop it or choose another listen_port: %w", port, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listening on UDP port %d: ports below 1024 need a privilege; choose a listen_port above: %w", port, err)
	}
	return fmt.Errorf("listening on UDP port %d: %w", port, err)
}
