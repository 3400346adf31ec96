package tunnel

import (
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// wireguard-go drops an initiation with the same line whatever is wrong with it. Where
// the key is a peer's, a line before names the peer and says that the initiation looks
// like an old one (replay), or that it comes too soon after another (flood). Both
// happen every day: an initiation that is sent again before it is answered is a
// replay. See ConsumeMessageInitiation in
// https://git.zx2c4.com/wireguard-go/tree/device/noise-protocol.go
//
// How old a replay is the line does not say: it has the peer's time, but not the time
// of the last initiation that was taken. So a peer whose clock is behind is known by
// what only such a peer does: it makes new initiations, and none of them is taken.

const (
	// refusedPatience is for how long that may go on before it is told: a machine
	// without a clock of its own asks for the time when it has started.
	refusedPatience = time.Minute

	// refusedEvery is how often it is told of one peer.
	refusedEvery = 24 * time.Hour

	// strangersEvery is how often it is told that unknown keys call. A peer that has
	// been taken out of the configuration may call every 5 s for years.
	strangersEvery = time.Hour

	// strangersMax bounds the hosts that are told of before their hour has come.
	strangersMax = 16
)

// refusals are the initiations that wireguard-go has dropped.
type refusals struct {
	mu sync.Mutex

	// known counts the lines of dropped initiations that are to come and whose key is a
	// peer's. wireguard-go has a worker for each processor, so that another's line may
	// come between: then the two are told with each other's address.
	known int

	peers map[*device.Peer]*refused

	told  time.Time            // when the last hour of strangers began
	calls int                  // of strangers, that the log has not been told of
	hosts map[string]time.Time // when a stranger last called from there
}

// refused is a peer with whom there has been no handshake since an initiation of its
// was dropped.
type refused struct {
	since time.Time // by this end's clock; zero if there has been one
	first tai64n.Timestamp
	told  time.Time
}

// said takes one of wireguard-go's messages, and says of which peer to tell that its
// clock is behind, and what that shows.
func (r *refusals) said(now time.Time, format string, args []any) (behind *device.Peer, clock tai64n.Timestamp) {
	switch {
	case strings.HasSuffix(format, "handshake replay @ %v") && len(args) == 2:
		peer, _ := args[0].(*device.Peer)
		clock, _ = args[1].(tai64n.Timestamp)
		if r.replay(now, peer, clock) {
			return peer, clock
		}
	case strings.HasSuffix(format, "ConsumeMessageInitiation: handshake flood"):
		r.mu.Lock()
		r.known++
		r.mu.Unlock()
	case strings.HasSuffix(format, "Received handshake initiation"), strings.HasSuffix(format, "Received handshake response"):
		if len(args) == 1 {
			peer, _ := args[0].(*device.Peer)
			r.handshake(peer)
		}
	}
	return nil, clock
}

// replay takes note of an initiation that looks like an old one. The clock is the
// peer's.
func (r *refusals) replay(now time.Time, peer *device.Peer, clock tai64n.Timestamp) (behind bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known++
	p := r.peers[peer]
	if p == nil {
		p = new(refused)
		if r.peers == nil {
			r.peers = make(map[*device.Peer]*refused)
		}
		r.peers[peer] = p
	}
	switch {
	case p.since.IsZero() || p.first.After(clock):
		// The latter after a copy of one that was taken: the clock went back later.
		p.since, p.first = now, clock
		return false
	case clock == p.first, now.Sub(p.since) < refusedPatience:
		return false
	case !p.told.IsZero() && now.Sub(p.told) < refusedEvery:
		return false
	}
	p.told = now
	return true
}

// handshake takes note that there has been one with a peer.
func (r *refusals) handshake(peer *device.Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[peer]; p != nil {
		p.since = time.Time{}
	}
}

// stranger takes note of a dropped initiation, and says whether to tell of it and how
// many calls of unknown keys there have been since it was last told of any. A host that
// has not called for an hour is told of at once, so that the log says something to who
// sets up a peer while a former one keeps calling.
func (r *refusals) stranger(now time.Time, remote string) (calls int, tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known > 0 {
		r.known--
		return 0, false
	}
	if r.hosts == nil {
		r.hosts = make(map[string]time.Time)
	}
	r.calls++
	due := r.told.IsZero() || now.Sub(r.told) >= strangersEvery
	if due {
		r.told = now
		maps.DeleteFunc(r.hosts, func(_ string, last time.Time) bool { return now.Sub(last) >= strangersEvery })
	}
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	_, seen := r.hosts[host]
	fresh := !seen && len(r.hosts) < strangersMax
	if seen || fresh {
		r.hosts[host] = now
	}
	if !due && !fresh {
		return 0, false
	}
	calls, r.calls = r.calls, 0
	return calls, true
}

// keep forgets all peers but some.
func (r *refusals) keep(is func(*device.Peer) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.peers, func(peer *device.Peer, _ *refused) bool { return !is(peer) })
}

// forgetRefusals forgets those of the peers that next does not have. l.mu is held.
func (l *live) forgetRefusals(next *Config) {
	stays := make(map[*device.Peer]bool)
	for i := range next.Peers {
		stays[l.peer(next.Peers[i].PublicKey)] = true
	}
	l.refusals.keep(func(peer *device.Peer) bool { return stays[peer] })
}

// behind tells the log that a peer's clock is behind what it was.
func (l *live) behind(peer *device.Peer, clock tai64n.Timestamp) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.config.Peers {
		if p := &l.config.Peers[i]; l.peer(p.PublicKey) == peer {
			l.logger.Warn("a peer's clock is behind what it was, so that its handshakes look like old ones and are refused; set its clock, or restart Caddy here",
				zap.String("peer", p.Name), zap.Stringer("peer_clock", clock))
		}
	}
}
