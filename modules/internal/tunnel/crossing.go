package tunnel

import (
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// crossed tells from one of wireguard-go's messages that a peer's initiation
// will get no response, and which peer's: an initiation of this end's own was
// made between the moment the peer's was read and the moment it was to be
// answered, and has taken the place of its state.
//
// Where the peer's endpoint was not known yet, which is when a peer behind NAT
// calls for the first time and somebody dials it at that moment, this end's
// initiation has gone nowhere either. Both would then be silent for 5 s
// (Rekey-Timeout), and the dial would fail. The kernel's WireGuard holds one
// lock over reading and answering; wireguard-go does not:
// RoutineHandshake in https://git.zx2c4.com/wireguard-go/tree/device/receive.go
func crossed(format string, args []any) *device.Peer {
	if !strings.Contains(format, "Failed to create response message") || len(args) == 0 {
		return nil
	}
	peer, _ := args[0].(*device.Peer)
	return peer
}

// uncross sends peer a new initiation, now that its own has told where it is.
// A session that still holds is left alone: then its endpoint was known before,
// this end's initiation was sent, and its answer is on the way.
func (l *live) uncross(peer *device.Peer) {
	for _, status := range l.status() {
		if l.device.LookupPeer(device.NoisePublicKey(status.PublicKey)) != peer {
			continue
		}
		if time.Since(status.LastHandshake) < sessionMax {
			return
		}
		peer.ExpireCurrentKeypairs() // with which goes the wait of 5 s
		_ = peer.SendHandshakeInitiation(false)
		return
	}
}
