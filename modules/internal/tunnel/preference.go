package tunnel

import (
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
)

const (
	// preferFirst is how long after it is called by IPv4 a peer is tried by IPv6.
	// Each next time comes after twice as long, up to preferLast.
	preferFirst = 5 * time.Second
	preferLast  = 10 * time.Minute

	// preferHolds is how long IPv6 has to hold before it is tried as soon as at first
	// again. A line on which it passes handshakes and little else is not to be left and
	// taken by turns.
	preferHolds = 10 * time.Minute

	// preferCheck is when after a try something of the session is sent: by when the
	// initiation has been sent by IPv4 as well. If IPv6 leads to the peer and not back,
	// the peer learns by that that it is to go on by IPv4.
	preferCheck = 400 * time.Millisecond
)

// preference is that a peer which is called by IPv4 is tried by IPv6: IPv6 may not have
// been there yet when it was called, as after a reboot, or the other end may have been away
// when it was IPv6's turn. Through the provider's NAT the tunnel is as good, until that
// forgets it, but the other end does not see this one's prefix, which it may keep in DNS.
type preference struct {
	at    time.Time // when to try next; zero: not called by IPv4
	wait  time.Duration
	tried netip.AddrPort
	since time.Time // when it was first called by IPv6 again; zero: it is not
}

// prefersIPv6 tells whether it is time to look for an address by IPv6.
func (l *live) prefersIPv6(now time.Time, peer *Peer, e *endpointName, status PeerStatus) bool {
	p := &e.ipv6
	if !status.Endpoint.Addr().Unmap().Is4() {
		if p.tried.IsValid() && p.tried == status.Endpoint && p.since.IsZero() {
			l.log().Info("peer is called by IPv6 again", zap.String("peer", peer.Name), zap.Stringer("endpoint", status.Endpoint))
		}
		if p.since.IsZero() {
			p.since = now
		}
		p.at, p.tried = time.Time{}, netip.AddrPort{}
		return false
	}
	if now.Sub(status.LastHandshake) > sessionMax {
		return false // it is called by one and the other in turn
	}
	if p.at.IsZero() {
		if now.Sub(p.since) > preferHolds {
			p.wait = 0
		}
		p.at, p.since = now.Add(max(p.wait, preferFirst)), time.Time{}
	}
	return !now.Before(p.at)
}

// tryIPv6 lets the next handshake with a peer go to the first address by IPv6 that its name
// has.
func (l *live) tryIPv6(now time.Time, peer *Peer, e *endpointName, found lookup, status PeerStatus) {
	p := &e.ipv6
	p.wait = min(max(2*p.wait, preferFirst), preferLast)
	p.at = now.Add(p.wait)
	first := slices.IndexFunc(found.candidates, func(c netip.AddrPort) bool { return c.Addr().Is6() })
	if first < 0 || !status.Endpoint.Addr().Unmap().Is4() {
		return
	}
	p.tried = found.candidates[first]
	if err := l.bind.Divert(status.Endpoint, p.tried); err != nil {
		return
	}
	l.calls.handshake(l.device, peer.PublicKey)
	time.AfterFunc(preferCheck, func() { l.calls.keepalive(l.device, peer.PublicKey) })
}
