package gvisor

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// queueShards is the number of independent queues between the stack and
	// the device. A flow always takes the same one, so its packets stay in
	// order while senders of different flows do not share a lock.
	queueShards = 4

	// shardLimit bounds what waits in one shard, in bytes. It need only cover
	// the time that the device's reader takes to come back: more would be
	// delay that no congestion control can see.
	shardLimit = 256 << 10

	// shardReserve is how many more bytes packets may take that never wait
	// (see push). They are small, so that this is thousands of them.
	shardReserve = 256 << 10

	// packetOverhead is added to the size of every packet, so that a queue of
	// tiny ones is bounded too.
	packetOverhead = 256

	// stallTimeout is how long a full shard may see no read at all before its
	// waiting senders give up, as a network card's watchdog would. Senders
	// hold the lock of their connection while they wait, so that without it a
	// device that is no longer read would block Close and deadlines for ever.
	stallTimeout = time.Second
)

// outQueue carries packets from the stack to the device's reader. Senders wait
// while it is full; nothing is dropped as long as somebody reads.
type outQueue struct {
	shards [queueShards]shard

	// next is the shard that the reader looks at first. Only the reader uses
	// it.
	next int

	// sleeping says that the reader found nothing and waits for wake.
	sleeping atomic.Bool
	wake     chan struct{}

	closed atomic.Bool

	// dropped counts packets that were thrown away because nobody read.
	dropped atomic.Uint64
}

// shard is one bounded FIFO.
type shard struct {
	mu    sync.Mutex
	space sync.Cond

	// ring holds count packets from head on; its length is a power of two.
	ring  []*stack.PacketBuffer
	head  int
	count int
	bytes int

	waiting  int
	pops     uint64
	watching bool
	stalled  bool
	closed   bool

	// filled mirrors count for the reader's look without the lock.
	filled atomic.Int32

	// Shards must not share a cache line: they exist to be independent.
	_ [64]byte
}

func newOutQueue() *outQueue {
	q := &outQueue{wake: make(chan struct{}, 1)}
	for i := range q.shards {
		s := &q.shards[i]
		s.space.L = &s.mu
		s.ring = make([]*stack.PacketBuffer, 64)
	}
	return q
}

// push appends a packet and takes a reference to it. If the shard is full,
// push waits for the reader when wait is true; otherwise it makes use of the
// reserve. It returns false if the packet was dropped.
func (q *outQueue) push(pkt *stack.PacketBuffer, wait bool) bool {
	s := &q.shards[pkt.Hash%queueShards]
	size := pkt.Size() + packetOverhead
	s.mu.Lock()
	for wait && s.bytes >= shardLimit && !s.closed && !s.stalled {
		s.watch()
		s.waiting++
		s.space.Wait()
		s.waiting--
	}
	full := s.bytes >= shardLimit
	if !wait {
		full = s.bytes >= shardLimit+shardReserve
	}
	if full || s.closed {
		closed := s.closed
		s.mu.Unlock()
		if !closed {
			q.dropped.Add(1)
		}
		return false
	}
	if s.count == len(s.ring) {
		s.grow()
	}
	s.ring[(s.head+s.count)&(len(s.ring)-1)] = pkt.IncRef()
	s.count++
	s.bytes += size
	s.filled.Store(int32(s.count))
	s.mu.Unlock()

	if q.sleeping.Load() && q.sleeping.CompareAndSwap(true, false) {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// pop returns the next packet, whose reference becomes the caller's, or nil if
// there is none. Shards take turns. Only one goroutine may call it at a time.
func (q *outQueue) pop() *stack.PacketBuffer {
	for i := range queueShards {
		n := (q.next + i) % queueShards
		s := &q.shards[n]
		if s.filled.Load() == 0 {
			continue
		}
		s.mu.Lock()
		pkt := s.take()
		s.mu.Unlock()
		if pkt != nil {
			q.next = (n + 1) % queueShards
			return pkt
		}
	}
	return nil
}

// wait blocks until there may be a packet, and returns false when the queue is
// closed.
func (q *outQueue) wait() bool {
	q.sleeping.Store(true)
	// A sender that pushed before it could see sleeping sends no wake.
	if q.empty() && !q.closed.Load() {
		<-q.wake
	}
	q.sleeping.Store(false)
	return !q.closed.Load()
}

func (q *outQueue) empty() bool {
	for i := range q.shards {
		if q.shards[i].filled.Load() != 0 {
			return false
		}
	}
	return true
}

// close wakes everybody and makes every later push drop its packet. What is
// queued stays until drain.
func (q *outQueue) close() {
	q.closed.Store(true)
	for i := range q.shards {
		s := &q.shards[i]
		s.mu.Lock()
		s.closed = true
		s.space.Broadcast()
		s.mu.Unlock()
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// drain releases what a closed queue still holds.
func (q *outQueue) drain() {
	for pkt := q.pop(); pkt != nil; pkt = q.pop() {
		pkt.DecRef()
	}
}

// take removes the oldest packet. s.mu is held.
func (s *shard) take() *stack.PacketBuffer {
	if s.count == 0 {
		return nil
	}
	pkt := s.ring[s.head]
	s.ring[s.head] = nil
	s.head = (s.head + 1) & (len(s.ring) - 1)
	s.count--
	s.bytes -= pkt.Size() + packetOverhead
	s.pops++
	s.stalled = false
	s.filled.Store(int32(s.count))
	if s.waiting > 0 && s.bytes < shardLimit {
		s.space.Signal()
	}
	return pkt
}

// grow doubles the ring. The limits in bytes bound it. s.mu is held.
func (s *shard) grow() {
	ring := make([]*stack.PacketBuffer, 2*len(s.ring))
	n := copy(ring, s.ring[s.head:])
	copy(ring[n:], s.ring[:s.head])
	s.ring, s.head = ring, 0
}

// watch starts the watchdog unless it runs. s.mu is held.
func (s *shard) watch() {
	if s.watching {
		return
	}
	s.watching = true
	seen := s.pops
	time.AfterFunc(stallTimeout, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watching = false
		if s.waiting == 0 || s.closed {
			return
		}
		if s.pops != seen {
			s.watch()
			return
		}
		s.stalled = true
		s.space.Broadcast()
	})
}
