package wgbind

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
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

	// unanswered is since when an endpoint has answered no initiation.
	unanswered map[string]time.Time
}

type initiation struct {
	datagram []byte
	endpoint conn.Endpoint
	bind     conn.Bind
	wait     time.Duration
	since    time.Time
	timer    *time.Timer
}

// sent looks at what is sent and remembers an initiation.
func (r *resender) sent(bind conn.Bind, bufs [][]byte, endpoint conn.Endpoint) {
	if len(bufs) != 1 || len(bufs[0]) != initiationSize || bufs[0][0] != initiationType {
		return
	}
	index := binary.LittleEndian.Uint32(bufs[0][4:])
	i := &initiation{
		datagram: slices.Clone(bufs[0]),
		// The address from which the first one leaves may lead nowhere by now.
		endpoint: anySource(bind, endpoint),
		bind:     bind,
		wait:     resendFirst,
		since:    time.Now(),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting = make(map[uint32]*initiation)
	}
	if len(r.waiting) >= resendMax {
		return
	}
	if to := endpoint.DstToString(); r.unanswered[to].IsZero() {
		if r.unanswered == nil || len(r.unanswered) >= resendMax {
			r.unanswered = make(map[string]time.Time)
		}
		r.unanswered[to] = i.since
	}
	i.timer = time.AfterFunc(i.wait, func() { r.again(index, i) })
	r.waiting[index] = i
}

func (r *resender) again(index uint32, i *initiation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[index] != i {
		return
	}
	i.wait *= 2
	if time.Since(i.since)+i.wait > resendLast {
		delete(r.waiting, index)
	} else {
		i.timer.Reset(i.wait)
	}
	// An error means what it meant the first time, and wireguard-go has
	// logged it then.
	_ = i.bind.Send([][]byte{i.datagram}, i.endpoint)
}

// received looks at what has arrived and forgets what it answers.
func (r *resender) received(packet []byte) {
	var index uint32
	switch {
	case len(packet) == responseSize && packet[0] == responseType:
		index = binary.LittleEndian.Uint32(packet[8:])
	case len(packet) == cookieSize && packet[0] == cookieType:
		// The other end is under load and wants the next one, with a cookie.
		index = binary.LittleEndian.Uint32(packet[4:])
	default:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, ok := r.waiting[index]; ok {
		i.timer.Stop()
		delete(r.waiting, index)
		delete(r.unanswered, i.endpoint.DstToString())
	}
}

// UnansweredSince is since when endpoint has answered none of the initiations
// that were sent to it, the zero time if it has answered the last, or was sent
// none.
func (b *Bind) UnansweredSince(endpoint netip.AddrPort) time.Time {
	b.resender.mu.Lock()
	defer b.resender.mu.Unlock()
	return b.resender.unanswered[endpoint.String()]
}

// stop forgets everything.
func (r *resender) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for index, i := range r.waiting {
		i.timer.Stop()
		delete(r.waiting, index)
	}
	clear(r.unanswered)
}

// watch wraps receive functions so that answers are seen.
func (r *resender) watch(receives []conn.ReceiveFunc) []conn.ReceiveFunc {
	watched := make([]conn.ReceiveFunc, len(receives))
	for i, receive := range receives {
		watched[i] = func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
			n, err := receive(packets, sizes, endpoints)
			for j := range n {
				r.received(packets[j][:sizes[j]])
			}
			return n, err
		}
	}
	return watched
}
