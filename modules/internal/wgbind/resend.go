package wgbind

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// The messages of a handshake (whitepaper, section 5.4).
const (
	initiationType = 1
	initiationSize = 148
	responseType   = 2
	responseSize   = 92
	cookieType     = 3
	cookieSize     = 64
)

const (
	// resendFirst is when an unanswered initiation is sent again: later than
	// an answer from the other side of the world takes. Each next time comes
	// after twice as long.
	resendFirst = 300 * time.Millisecond

	// resendLast is when to leave it: wireguard-go then sends an initiation
	// of its own (Rekey-Timeout, whitepaper, section 6.1).
	resendLast = 5 * time.Second

	// divertLasts is for how long the next initiation is awaited that is to be diverted.
	divertLasts = time.Second

	// moveLasts is longer than what is on its way to an endpoint is.
	moveLasts = 10 * time.Second

	// resendMax bounds the initiations that wait for an answer. More are not
	// sent again.
	resendMax = 4096
)

// resender sends an initiation again, the very same datagram, until it is
// answered. The protocol lets an end make only one initiation in 5 s, so one
// that is lost, or arrives before the other end has started, would cost 5 s.
// A copy costs the other end nothing: if the first one did arrive, its
// timestamp makes the copy a replay, which is dropped unanswered.
type resender struct {
	mu      sync.Mutex
	waiting map[uint32]*initiation // by sender index
	calling map[string]*initiation // the last one to an endpoint, by it

	replied map[string]time.Time // when an endpoint was last answered
	crossed func(*Crossing)      // nil if nobody wants to know

	// unanswered is since when an endpoint has answered no initiation.
	unanswered map[string]time.Time

	// diverted is where the next initiation to an endpoint goes to.
	diverted map[string]diversion

	// moves are those of peers that have answered such a one, by the endpoint which
	// they had. moving is how many there are.
	moves  map[string]move
	moving atomic.Int32

	callers [callersMax]caller
}

// diversion is of an initiation that is to come at once.
type diversion struct {
	to    conn.Endpoint
	until time.Time
}

// move is a peer's from one endpoint to another.
type move struct {
	to    string
	until time.Time
}

type initiation struct {
	datagram []byte
	endpoint conn.Endpoint
	bind     conn.Bind
	wait     time.Duration
	since    time.Time
	timer    *time.Timer

	answered  bool
	abandoned bool // by this end, which has answered a call from there
	beside    bool // an answer to a call from there
	diverted  conn.Endpoint
	crossing  *Crossing
}

func (i *initiation) index() uint32 { return binary.LittleEndian.Uint32(i.datagram[4:]) }
func (i *initiation) to() string    { return i.endpoint.DstToString() }

// sent looks at what is sent, and returns where it is to go instead, or nil.
func (r *resender) sent(bind conn.Bind, bufs [][]byte, endpoint conn.Endpoint) conn.Endpoint {
	if len(bufs) != 1 {
		return nil
	}
	switch packet := bufs[0]; {
	case len(packet) == initiationSize && packet[0] == initiationType:
		return r.remember(bind, packet, endpoint)
	case len(packet) == responseSize && packet[0] == responseType:
		r.abandon(endpoint)
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.callerOf(packet, endpoint)
	}
	return nil
}

func (r *resender) remember(bind conn.Bind, packet []byte, endpoint conn.Endpoint) conn.Endpoint {
	i := &initiation{
		datagram: slices.Clone(packet),
		// The address from which the first one leaves may lead nowhere by now.
		endpoint: anySource(bind, endpoint),
		bind:     bind,
		wait:     resendFirst,
		since:    time.Now(),
	}
	to := i.to()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting, r.calling = make(map[uint32]*initiation), make(map[string]*initiation)
	}
	if max(len(r.waiting), len(r.calling)) >= resendMax {
		return nil
	}
	if former := r.calling[to]; former != nil {
		former.crossing.settle()
	}
	if d := r.diverted[to]; time.Now().Before(d.until) {
		i.diverted = d.to
	}
	delete(r.diverted, to)
	// What goes elsewhere first says nothing of this endpoint yet.
	if i.diverted == nil && r.unanswered[to].IsZero() {
		if r.unanswered == nil || len(r.unanswered) >= resendMax {
			r.unanswered = make(map[string]time.Time)
		}
		r.unanswered[to] = i.since
	}
	i.timer = time.AfterFunc(i.wait, func() { r.again(i) })
	r.waiting[i.index()], r.calling[to] = i, i
	if time.Since(r.replied[to]) < besideMax {
		i.beside = true
		r.judge(i)
	}
	return i.diverted
}

func (r *resender) again(i *initiation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	waits := r.waiting[i.index()] == i
	if !waits && r.calling[i.to()] != i {
		return
	}
	left := resendLast - time.Since(i.since)
	if left <= 0 {
		r.forget(i)
		return
	}
	i.wait *= 2
	i.timer.Reset(min(i.wait, left))
	if !waits || i.abandoned {
		return
	}
	// An error means what it meant the first time, and wireguard-go has
	// logged it then.
	_ = i.bind.Send([][]byte{i.datagram}, i.endpoint)
}

// forget is for an initiation that needs no more attention. r.mu is held.
func (r *resender) forget(i *initiation) {
	i.timer.Stop()
	if r.waiting[i.index()] == i {
		delete(r.waiting, i.index())
	}
	if r.calling[i.to()] == i {
		delete(r.calling, i.to())
	}
}

// received looks at what has arrived from somewhere, and at what it answers.
func (r *resender) received(packet []byte, from conn.Endpoint) {
	var index uint32
	refused := false
	switch {
	case len(packet) == responseSize && packet[0] == responseType:
		index = binary.LittleEndian.Uint32(packet[8:])
	case len(packet) == cookieSize && packet[0] == cookieType:
		// The other end is under load and wants the next one, with a cookie.
		index = binary.LittleEndian.Uint32(packet[4:])
		refused = true
	case len(packet) == initiationSize && packet[0] == initiationType:
		r.mu.Lock()
		r.called(packet, from)
		r.mu.Unlock()
		return
	default:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.waiting[index]
	if !ok {
		return
	}
	delete(r.unanswered, i.to())
	if refused {
		r.forget(i)
		return
	}
	if i.diverted != nil && !i.abandoned && from.DstToString() == i.diverted.DstToString() {
		if r.moves == nil {
			r.moves = make(map[string]move)
		}
		r.moves[i.to()] = move{from.DstToString(), time.Now().Add(moveLasts)}
		r.moving.Store(int32(len(r.moves)))
	}
	delete(r.waiting, index)
	i.answered = true
	r.judge(i)
}

// UnansweredSince is since when endpoint has answered none of the initiations
// that were sent to it, the zero time if it has answered the last, or was sent
// none.
func (b *Bind) UnansweredSince(endpoint netip.AddrPort) time.Time {
	b.resender.mu.Lock()
	defer b.resender.mu.Unlock()
	return b.resender.unanswered[endpoint.String()]
}

// Divert lets the next initiation to endpoint, if it is made now, go to another address of
// the same peer. If it is not answered from there, it goes to endpoint when it is sent again.
// So a peer that answers at one address is tried at the other, and keeps its session whether
// that leads to it or not: it is where its answer comes from. But the peer takes this end to
// be at the other one from then on, until something of the session comes from here: where
// the way leads there and not back, the caller has to send that.
func (b *Bind) Divert(endpoint, other netip.AddrPort) error {
	parsed, err := b.ParseEndpoint(other.String())
	if err != nil {
		return err
	}
	b.resender.mu.Lock()
	defer b.resender.mu.Unlock()
	if b.resender.diverted == nil || len(b.resender.diverted) >= resendMax {
		b.resender.diverted = make(map[string]diversion)
	}
	b.resender.diverted[endpoint.String()] = diversion{parsed, time.Now().Add(divertLasts)}
	return nil
}

// stop forgets everything.
func (r *resender) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.waiting {
		r.forget(i)
	}
	for _, i := range r.calling {
		r.forget(i)
	}
	clear(r.unanswered)
	clear(r.replied)
	clear(r.diverted)
	clear(r.moves)
	r.moving.Store(0)
}

// movedTo is where a peer is of which something has come from an endpoint that it has left,
// or nil: what was on its way there then would take it back, and so this end, which takes
// it back in turn, with as much on its way.
func (r *resender) movedTo(bind conn.Bind, from conn.Endpoint) conn.Endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(r.moves, func(_ string, m move) bool { return now.After(m.until) })
	r.moving.Store(int32(len(r.moves)))
	moved, ok := r.moves[from.DstToString()]
	if !ok {
		return nil
	}
	to, err := bind.ParseEndpoint(moved.to)
	if err != nil {
		return nil
	}
	return to
}

// watch wraps a bind's receive functions so that answers are seen, and what is late.
func (r *resender) watch(bind conn.Bind, receives []conn.ReceiveFunc) []conn.ReceiveFunc {
	watched := make([]conn.ReceiveFunc, len(receives))
	for i, receive := range receives {
		watched[i] = func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
			n, err := receive(packets, sizes, endpoints)
			for j := range n {
				if sizes[j] == 0 {
					continue
				}
				r.received(packets[j][:sizes[j]], endpoints[j])
				if r.moving.Load() == 0 {
					continue
				}
				if to := r.movedTo(bind, endpoints[j]); to != nil {
					endpoints[j] = to
				}
			}
			return n, err
		}
	}
	return watched
}
