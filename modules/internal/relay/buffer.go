package relay

import "sync"

const (
	// largeBuffer is what a busy direction copies with. Larger ones lose:
	// 256 KiB halved uploads through gVisor's stack, since they let the
	// sender run ahead of the receiver's window.
	largeBuffer = 32 << 10

	// smallBuffer is what a waiting direction holds. Most of a relay's
	// connections are idle, and with two large buffers each, ten thousand of
	// them would hold 640 MiB.
	smallBuffer = 4 << 10

	// MaxDatagram is the largest UDP payload there can be (RFC 768: a 16-bit
	// length), so that no read ever cuts one.
	MaxDatagram = 64 << 10
)

var (
	largeBuffers = bufferPool(largeBuffer)
	smallBuffers = bufferPool(smallBuffer)

	// Datagrams lends buffers of MaxDatagram bytes.
	Datagrams = bufferPool(MaxDatagram)
)

// Pool lends byte slices of one size. It holds pointers, because a slice put
// into a sync.Pool is itself an allocation.
type Pool struct{ pool sync.Pool }

func bufferPool(size int) *Pool {
	return &Pool{sync.Pool{New: func() any { b := make([]byte, size); return &b }}}
}

// Get returns a buffer with arbitrary content.
func (p *Pool) Get() *[]byte { return p.pool.Get().(*[]byte) }

// Put takes a buffer back, which the caller must not use any more.
func (p *Pool) Put(b *[]byte) { p.pool.Put(b) }
