package wgbind

import (
	"net/netip"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// besideMax is how close to one another two messages of a handshake may leave
// so that the other end may read them at the same time.
const besideMax = 20 * time.Millisecond

// Crossing is two handshakes between this end and another that undo each other.
//
// An end that answers a call gives up its own. So if both call at the same
// moment, both answers come to ends that no longer want them, and each then
// waits for 5 s (Rekey-Timeout, whitepaper, section 6.1). Where both have
// something to say all the time, they call at the same moment again, and again.
// Linux and wireguard-go are both like that. And if a call and an answer are
// read at the same moment, wireguard-go may end with a session that carries one
// way only, until it is missed after 15 s: between its look at what the answer
// belongs to and its use of that, the call takes its place. See
// ConsumeMessageResponse in
// https://git.zx2c4.com/wireguard-go/tree/device/noise-protocol.go
//
// Nothing is held back or dropped to avoid that. What arrives is not
// authenticated here, and whether the other end would do the same is unknown.
// It is noticed instead, by what wireguard-go does after it has authenticated:
// it answers an endpoint that it has called, and either that one's answer comes,
// or the call and the answer have left side by side.
type Crossing struct {
	// Endpoint is where the other end is.
	Endpoint netip.AddrPort

	// RoundTrip is how long an answer takes, as far as is known.
	RoundTrip time.Duration

	settled atomic.Bool
}

// Settled tells whether there has been another handshake with the endpoint
// since, begun by either end.
func (c *Crossing) Settled() bool { return c.settled.Load() }

func (c *Crossing) settle() {
	if c != nil {
		c.settled.Store(true)
	}
}

// OnCrossing has crossed called, in a goroutine of its own, when handshakes have
// undone each other. It is to be called before Open.
func (b *Bind) OnCrossing(crossed func(*Crossing)) { b.resender.crossed = crossed }

// Called is when this end has last begun a handshake with endpoint, or the zero
// time if that was more than 5 s ago or it was refused.
func (b *Bind) Called(endpoint netip.AddrPort) time.Time {
	b.resender.mu.Lock()
	defer b.resender.mu.Unlock()
	if i := b.resender.calling[endpoint.String()]; i != nil {
		return i.since
	}
	return time.Time{}
}

// abandon is for when this end answers a call from endpoint. Its own is not sent
// again: an answer to it would not be understood any more. Somebody is at the
// endpoint, since wireguard-go answers only what is authentic and new.
func (r *resender) abandon(endpoint conn.Endpoint) {
	to, now := endpoint.DstToString(), time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.unanswered, to)
	if r.replied == nil || len(r.replied) >= resendMax {
		r.replied = make(map[string]time.Time)
	}
	r.replied[to] = now
	if i := r.calling[to]; i != nil {
		i.crossing.settle()
		i.abandoned = true
		i.beside = i.beside || now.Sub(i.since) < besideMax
		r.judge(i)
	}
}

// judge looks whether an initiation has crossed another. It may be answered
// first and abandoned then: wireguard-go may be about to answer a call when the
// answer to its own arrives. r.mu is held.
func (r *resender) judge(i *initiation) {
	crosses := i.abandoned && i.answered || i.beside
	if !crosses || i.crossing != nil || r.crossed == nil {
		return
	}
	endpoint, err := netip.ParseAddrPort(i.to())
	if err != nil {
		return
	}
	i.crossing = &Crossing{Endpoint: endpoint, RoundTrip: resendFirst}
	if i.answered {
		i.crossing.RoundTrip = time.Since(i.since)
	}
	go r.crossed(i.crossing)
}
