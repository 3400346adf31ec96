package tunnel

import (
	"bytes"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/device"

	"github.com/homeward-relay/homeward/modules/internal/wgbind"
)

// Two ends that call each other at the same moment may both be left without a
// session and silent for 5 s (Rekey-Timeout, whitepaper, section 6.1), or more.
//
// Mostly their calls cross on the line, and each answer comes to an end that has
// given up what it answers. The Bind notices that, see wgbind.Crossing.
//
// Or an initiation of this end's own is made between the moment the peer's was
// read and the moment it was to be answered, and takes the place of its state.
// That is well where this end's has been sent: it will be answered. Where the
// peer's endpoint was not known yet, which is when a peer behind NAT calls for
// the first time and somebody dials it at that moment, it has gone nowhere.
//
// Or the peer's call and its answer are read at the same moment, and the state
// of one is mixed up with that of the other. wireguard-go logs both: see
// RoutineHandshake in
// https://git.zx2c4.com/wireguard-go/tree/device/receive.go
//
// In all cases this end calls again. A peer that does the same, being one of
// ours, must not do it at the same moment, and one that does not cannot be told
// from it.

const (
	// crossingPause is how much later than a lost call the next may come. A peer
	// takes no second one within 20 ms, nor one whose timestamp is not a later
	// multiple of 16.8 ms.
	crossingPause = 40 * time.Millisecond

	// crossingGrace is what two ends may differ in when they notice.
	crossingGrace = 60 * time.Millisecond
)

// failed tells from one of wireguard-go's messages which peer's handshake has
// failed, and whether that may have spoilt one that this end began as well.
func failed(format string, args []any) (peer *device.Peer, both bool) {
	both = strings.Contains(format, "Failed to derive keypair")
	if len(args) == 0 || !both && !strings.Contains(format, "Failed to create response message") {
		return nil, false
	}
	peer, _ = args[0].(*device.Peer)
	return peer, both
}

// recall calls a peer whose handshake has failed. Unless both have, it needs no
// call where one of this end's own is on its way to it.
func (l *live) recall(peer *device.Peer, both bool) {
	for _, status := range l.status() {
		if l.peer(status.PublicKey) == peer && (both || l.bind.Called(status.Endpoint).IsZero()) {
			l.callAnew(status)
		}
	}
}

// uncross calls a peer again after a while, unless there is another handshake
// with it by then.
func (l *live) uncross(crossing *wgbind.Crossing) {
	l.mu.Lock()
	own := l.config.PrivateKey.Public()
	l.mu.Unlock()
	for _, status := range l.status() {
		if status.Endpoint != crossing.Endpoint {
			continue
		}
		time.AfterFunc(uncrossAfter(own, status.PublicKey, crossing.RoundTrip), func() {
			if !crossing.Settled() {
				l.callAnew(status)
			}
		})
	}
}

// uncrossAfter is how long to wait before a peer is called again. Of two ends of
// ours, the one with the smaller public key leads; the other waits for as long as
// it takes to hear from that one.
func uncrossAfter(own, peer PublicKey, roundTrip time.Duration) time.Duration {
	if bytes.Compare(own[:], peer[:]) < 0 {
		return crossingPause
	}
	return crossingPause + roundTrip + crossingGrace
}

// callAnew begins a handshake whatever was before, except if that was a moment
// ago.
func (l *live) callAnew(status PeerStatus) {
	l.anew.Lock()
	defer l.anew.Unlock()
	peer := l.peer(status.PublicKey)
	if peer == nil || time.Since(l.bind.Called(status.Endpoint)) < crossingPause {
		return // it has been removed or called, or the tunnel is down
	}
	l.log().Debug("both ends have begun a handshake at once; beginning anew", zap.String("peer", status.Name))
	peer.ExpireCurrentKeypairs() // with which goes the wait of 5 s
	_ = peer.SendHandshakeInitiation(false)
}

// peer is wireguard-go's, or nil if it has been removed.
func (l *live) peer(key PublicKey) *device.Peer {
	return l.device.LookupPeer(device.NoisePublicKey(key))
}
