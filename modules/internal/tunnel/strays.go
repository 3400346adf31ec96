package tunnel

import (
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// A peer believes in its session for three minutes, and says nothing meanwhile but
// keepalives if it has nothing else to say. If this end has been started anew, it does not
// know the session. It calls the peer where it was last heard; but where the peer has got
// another address at the same time, or nothing is remembered, the two would not find each
// other until the peer begins anew. Its keepalives come from where it is, though. They
// say nothing about who has sent them, but a call does no harm: only that peer can read
// it.

const (
	// strayAfter is how long peers may take to answer where they were last heard, before
	// strays are looked for.
	strayAfter = 2 * time.Second

	// strayEvery is the least time between two calls to strays. Anybody can send
	// something that looks like one, and must not make this end send much to others. It
	// doubles up to strayRarely as long as nobody answers.
	strayEvery  = 5 * time.Second
	strayRarely = time.Minute

	// strayPatience is how long a peer may take to answer at a stray's address. After
	// that it is called where it was last heard again.
	strayPatience = 4 * time.Second

	// strayPeers bounds how many peers are called at one address.
	strayPeers = 16
)

// stray is the last address that was tried, and the peers for which it was.
type stray struct {
	at    time.Time
	pause time.Duration
	peers []Peer
}

// unheard are the peers that call this end and have not been heard since it started.
func unheard(peers []Peer, status map[PublicKey]PeerStatus) (missing []Peer) {
	for _, peer := range peers {
		if s := status[peer.PublicKey]; peer.Endpoint == "" && s.LastReceived.IsZero() {
			missing = append(missing, peer)
		}
	}
	return missing
}

// look asks for strays as long as a peer has not been heard, and gives those that have not
// answered at the last one's address back to the memory.
func (s *stray) look(l *live, memory *endpointMemory, peers []Peer, status map[PublicKey]PeerStatus) {
	if len(unheard(peers, status)) > 0 && time.Since(s.at) > s.pause && memory.tried() {
		// An address at which a peer has been called has its own session, or will.
		known := make(map[netip.AddrPort]bool)
		for _, other := range status {
			known[other.Endpoint] = true
		}
		l.bind.WantStray(known)
	} else {
		l.bind.WantStray(nil)
	}
	if s.peers == nil || time.Since(s.at) < strayPatience {
		return
	}
	missing := unheard(s.peers, status)
	if len(missing) < len(s.peers) {
		s.pause = strayEvery
	}
	memory.recall(missing, l.log())
	s.peers = nil
}

// call calls the peers that have not been heard at an address at which somebody is who
// believes in a session.
func (s *stray) call(l *live, from netip.AddrPort, peers []Peer, status map[PublicKey]PeerStatus) {
	missing := unheard(peers, status)
	if len(missing) == 0 || time.Since(s.at) < s.pause {
		return
	}
	for _, other := range status {
		if other.Endpoint == from {
			return // its own session
		}
	}
	missing = missing[:min(len(missing), strayPeers)]
	s.at, s.peers, s.pause = time.Now(), missing, min(max(strayEvery, 2*s.pause), strayRarely)
	for _, peer := range missing {
		known := l.peer(peer.PublicKey)
		if known == nil {
			continue
		}
		known.ExpireCurrentKeypairs() // before the endpoint, as in endpointMemory.call
		if err := l.device.IpcSet(endpointChange(peer.PublicKey, from)); err != nil {
			l.log().Error("setting peer's endpoint", zap.String("peer", peer.Name), zap.Error(err))
			continue
		}
		l.log().Info("somebody speaks of a session that is not known here; calling the peer there, in case that it is this one",
			zap.String("peer", peer.Name), zap.Stringer("endpoint", from))
		l.calls.handshake(l.device, peer.PublicKey)
	}
}
