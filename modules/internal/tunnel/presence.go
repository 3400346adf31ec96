package tunnel

import (
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// silentAfter is how long nothing may come from a peer before a log line says
// that it is silent: what the slowest customary keepalive, one a minute, needs
// three times.
const silentAfter = 3 * time.Minute

// pauseAfter is how long nothing may come from a peer before it is worth a look
// what waits for an answer when something does.
const pauseAfter = 1500 * time.Millisecond

// unheardKeepalives is how many of our keepalives a peer may leave without a
// word of its own before it is asked for one. They are never answered, so that
// alone proves nothing; a handshake is.
const unheardKeepalives = 3

// presence is when a peer was last heard.
type presence struct {
	received uint64 // bytes, at the last look
	heard    time.Time
	asked    time.Time // to shake hands, for want of a word
	session  bool      // there is one
	up       bool      // as the log last said
}

// notePresence compares the peers' counters with those of the last look, and
// logs who has come and who has fallen silent.
func (l *live) notePresence(status map[PublicKey]PeerStatus) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, s := range status {
		p := l.presence[key]
		if p == nil {
			p = new(presence)
			l.presence[key] = p
		}
		if s.Received != p.received {
			if now.Sub(p.heard) > pauseAfter {
				l.repeatTo(key)
			}
			p.received, p.heard = s.Received, now
		}
		p.session = !s.LastHandshake.IsZero() && now.Sub(s.LastHandshake) < sessionMax
		// What came may have been a handshake that leads to nothing.
		up := !s.LastHandshake.IsZero() && now.Sub(p.heard) < silentAfter
		if up == p.up {
			continue
		}
		p.up = up
		if up {
			l.logger.Info("peer is up", zap.String("peer", s.Name), zap.Stringer("endpoint", s.Endpoint))
		} else {
			l.logger.Warn("peer is silent", zap.String("peer", s.Name), zap.Stringer("endpoint", s.Endpoint), zap.Duration("for", now.Sub(p.heard).Round(time.Second)))
		}
	}
	for key := range l.presence {
		if _, ok := status[key]; !ok {
			delete(l.presence, key)
		}
	}
}

// absent tells whether no peer with a session has an address.
func (l *live) absent(address netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	peer, _ := l.config.PeerFor(address)
	if peer == nil {
		return true
	}
	p := l.presence[peer.PublicKey]
	return p == nil || !p.session
}

// askSilent begins a handshake with peers that we send keepalives to and hear
// nothing from. A peer that has been started anew, or is elsewhere by now, has
// no session with us, and would otherwise be noticed only when ours has aged
// out, after two minutes (whitepaper, section 6.2).
func (l *live) askSilent(peers []Peer, status map[PublicKey]PeerStatus) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, peer := range peers {
		p, s := l.presence[peer.PublicKey], status[peer.PublicKey]
		if p == nil || peer.PersistentKeepalive == 0 || s.LastHandshake.IsZero() || !s.Endpoint.IsValid() {
			continue
		}
		patience := unheardKeepalives * peer.PersistentKeepalive
		if now.Sub(p.heard) < patience || now.Sub(p.asked) < patience {
			continue
		}
		p.asked = now
		l.calls.handshake(l.device, peer.PublicKey)
	}
}

// repeatTo sends again what waits for an answer from a peer. l.mu is held.
func (l *live) repeatTo(key PublicKey) {
	l.repeater.heard(func(address netip.Addr) bool {
		peer, _ := l.config.PeerFor(address)
		return peer != nil && peer.PublicKey == key
	})
}

// lastReceived is when a peer was last heard.
func (l *live) lastReceived(key PublicKey) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.presence[key]; p != nil {
		return p.heard
	}
	return time.Time{}
}
