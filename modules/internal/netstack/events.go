package netstack

import (
	"sync"

	"golang.zx2c4.com/wireguard/tun"
)

// Events is the stream of events of a stack's device. Make one with NewEvents.
type Events struct {
	mu      sync.Mutex
	closed  bool
	channel chan tun.Event
}

// NewEvents returns a stream with nothing in it. There is no EventUp: the
// owner of the wireguard-go device decides when it goes up.
func NewEvents() *Events { return &Events{channel: make(chan tun.Event, 4)} }

// C is what wireguard-go reads.
func (e *Events) C() <-chan tun.Event { return e.channel }

// MTUChanged tells wireguard-go to ask for the MTU, which it pads up to.
func (e *Events) MTUChanged() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	select {
	case e.channel <- tun.EventMTUUpdate:
	default:
		// Events that wait unread will find the new MTU.
	}
}

// Close ends the stream, however often it is called.
func (e *Events) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		close(e.channel)
	}
}
