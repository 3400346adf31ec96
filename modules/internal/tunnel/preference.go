package tunnel

import (
	"net/netip"
	"time"

	"go.uber.org/zap"
)

const (
	// preferFirst is how long after it is called by IPv4 a peer is tried by IPv6.
	// Each next time comes after twice as long.
	preferFirst = 5 * time.Second

	// preferLast bounds the time between two tries, and lookupLast that between two
	// lookups if the name has no address that could be tried.
	preferLast = 2 * time.Hour
	lookupLast = 10 * time.Minute
)

// preference is that a peer which is called by IPv4 is tried by IPv6: IPv6 may not have
// been there yet when it was called, as after a reboot, or the other end may have been away
// when it was IPv6's turn. Through the provider's NAT the tunnel is as good, until that
// forgets it, but the other end does not see this one's prefix, which it may keep in DNS.
type preference struct {
	at      time.Time // when to try next; zero: not called by IPv4
	wait    time.Duration
	tried   netip.AddrPort
	changes uint64 // of routes that there had been
}

// prefersIPv6 tells whether it is time to look for an address by IPv6.
func (l *live) prefersIPv6(now time.Time, peer *Peer, e *endpointName, status PeerStatus) bool {
	p := &e.ipv6
	if !status.Endpoint.Addr().Unmap().Is4() {
		if p.tried.IsValid() && p.tried == status.Endpoint {
			l.log().Info("peer is called by IPv6 again", zap.String("peer", peer.Name), zap.Stringer("endpoint", status.Endpoint))
		}
		*p = preference{}
		return false
	}
	if now.Sub(status.LastHandshake) > sessionMax {
		p.at = time.Time{} // it is called by one and the other in turn
		return false
	}
	if changes := l.routeChanges.Load(); p.at.IsZero() || changes != p.changes {
		p.at, p.wait, p.changes = now.Add(preferFirst), 0, changes
	}
	return !now.Before(p.at)
}

// tryIPv6 lets the next handshake with a peer go to the first address by IPv6 that its name
// has.
func (l *live) tryIPv6(now time.Time, peer *Peer, e *endpointName, found lookup, status PeerStatus) {
	p := &e.ipv6
	p.wait = min(max(2*p.wait, preferFirst), preferLast)
	var candidate netip.AddrPort
	for _, c := range found.candidates {
		if c.Addr().Is6() {
			candidate = c
			break
		}
	}
	if !candidate.IsValid() {
		p.wait = min(p.wait, lookupLast)
	}
	p.at = now.Add(p.wait)
	if !candidate.IsValid() || !status.Endpoint.Addr().Unmap().Is4() {
		return
	}
	p.tried = candidate
	if err := l.bind.Divert(status.Endpoint, candidate); err == nil {
		l.calls.handshake(l.device, peer.PublicKey)
	}
}
