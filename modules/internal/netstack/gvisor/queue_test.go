package gvisor

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func testPacket(hash uint32, size int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(make([]byte, size))})
	pkt.Hash = hash
	return pkt
}

// TestQueueWaits has several senders that are faster than the reader. Nothing
// may be dropped, and the packets of each must come in order.
func TestQueueWaits(t *testing.T) {
	const senders, each = 8, 2000
	q := newOutQueue()
	var wg sync.WaitGroup
	for sender := range senders {
		wg.Go(func() {
			for i := range each {
				pkt := testPacket(uint32(sender), 1000)
				pkt.Mark = uint32(i)
				if !q.push(pkt, true) {
					t.Errorf("packet %d was dropped", i)
				}
				pkt.DecRef()
			}
		})
	}
	var next [senders]uint32
	for got := 0; got < senders*each; {
		pkt := q.pop()
		if pkt == nil {
			q.wait()
			continue
		}
		if pkt.Mark != next[pkt.Hash] {
			t.Fatalf("sender %d: packet %d came, want %d", pkt.Hash, pkt.Mark, next[pkt.Hash])
		}
		next[pkt.Hash]++
		got++
		pkt.DecRef()
	}
	wg.Wait()
	if q.dropped.Load() != 0 || !q.empty() {
		t.Errorf("dropped %d, empty is %v", q.dropped.Load(), q.empty())
	}
}

// TestQueueStall checks that senders give up when nobody reads, and wait again
// when somebody does.
func TestQueueStall(t *testing.T) {
	q := newOutQueue()
	push := func(wait bool) bool {
		pkt := testPacket(0, 1000)
		defer pkt.DecRef()
		return q.push(pkt, wait)
	}
	for push(false) {
		if q.shards[0].bytes > shardLimit+shardReserve+2000 {
			t.Fatal("the reserve has no end")
		}
	}
	start := time.Now()
	if push(true) {
		t.Fatal("a full queue took a packet")
	}
	if waited := time.Since(start); waited < stallTimeout {
		t.Errorf("the first sender gave up after %v", waited)
	}
	start = time.Now()
	if push(true) || time.Since(start) >= stallTimeout {
		t.Error("the second sender waited for what the first had found out")
	}
	if q.dropped.Load() != 3 {
		t.Errorf("dropped is %d", q.dropped.Load())
	}

	q.pop().DecRef()
	var taken atomic.Bool
	done := make(chan struct{})
	go func() {
		taken.Store(push(true))
		close(done)
	}()
	for {
		select {
		case <-done:
			if !taken.Load() {
				t.Error("a sender gave up although somebody read")
			}
			q.close()
			q.drain()
			return
		default:
			if pkt := q.pop(); pkt != nil {
				pkt.DecRef()
			}
		}
	}
}

// TestQueueClose wakes senders and the reader.
func TestQueueClose(t *testing.T) {
	q := newOutQueue()
	for {
		pkt := testPacket(1, 60000)
		taken := q.push(pkt, false)
		pkt.DecRef()
		if !taken {
			break
		}
	}
	done := make(chan bool)
	go func() {
		pkt := testPacket(1, 1)
		defer pkt.DecRef()
		done <- q.push(pkt, true)
	}()
	q.close()
	if <-done {
		t.Error("a closed queue took a packet")
	}
	if q.wait() {
		t.Error("a closed queue promises packets")
	}
	q.drain()
	if !q.empty() {
		t.Error("packets are left")
	}
}
