package tunnel

import (
	"context"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// callEvery is the pause between two calls, so that many peers do not all answer
// in the same instant. From 128 handshake messages on that wait, wireguard-go
// takes them for an attack (QueueHandshakeSize / 8) and refuses those without a
// cookie: the peers that have done nothing but answer would be called again 5 s
// later.
const callEvery = 2 * time.Millisecond

// calls makes calls to peers, handshakes and what leads to one, in the order in
// which they are asked for and with a pause between any two. Who is called alone
// is called at once.
type calls struct {
	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex
	waiting []func()
	running bool
	closed  bool
}

func newCalls() *calls {
	c := new(calls)
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// add makes a call when it is its turn, in a goroutine of the calls' own.
func (c *calls) add(call func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.waiting = append(c.waiting, call)
	if !c.running {
		c.running = true
		c.done.Go(c.run)
	}
}

func (c *calls) run() {
	pause := time.NewTicker(callEvery)
	defer pause.Stop()
	for {
		c.mu.Lock()
		if c.closed || len(c.waiting) == 0 {
			c.running = false
			c.mu.Unlock()
			return
		}
		call := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.mu.Unlock()
		call()
		select {
		case <-pause.C:
		case <-c.ctx.Done():
		}
	}
}

// handshake begins a handshake with a peer, if that is still there, and not when
// the last one is 5 s old.
func (c *calls) handshake(from *device.Device, key PublicKey) {
	c.add(func() {
		if peer := from.LookupPeer(device.NoisePublicKey(key)); peer != nil {
			_ = peer.SendHandshakeInitiation(false)
		}
	})
}

// keepalive sends a peer something, if it is still there: by that it learns where
// this end is. Without a session it begins a handshake.
func (c *calls) keepalive(from *device.Device, key PublicKey) {
	c.add(func() {
		if peer := from.LookupPeer(device.NoisePublicKey(key)); peer != nil {
			peer.SendKeepalive()
		}
	})
}

// close drops the calls that have not been made, and waits for the one that is
// being made.
func (c *calls) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.done.Wait()
}
