package tunnel

import (
	"time"

	"go.uber.org/zap"
)

// sleptAtLeast is how long this host must have slept for its peers to be called.
const sleptAtLeast = 10 * time.Second

// clock notices that this host has slept: the time of day has gone on, and the
// time that counts for timers has not.
type clock struct {
	day     time.Time // without the reading for timers
	running time.Duration
}

// slept is for how long the host has slept since the last call, of which the
// first is 0. Setting the time of day looks the same.
func (c *clock) slept(day time.Time, running time.Duration) (slept time.Duration) {
	day = day.Round(0)
	if !c.day.IsZero() {
		slept = day.Sub(c.day) - (running - c.running)
	}
	c.day, c.running = day, running
	return slept
}

// callAll begins handshakes with all peers that had one: while this host slept
// their sessions have ended or its own address has changed, which its timers,
// that slept as well, would notice minutes later.
func (l *live) callAll(status map[PublicKey]PeerStatus, slept time.Duration) {
	l.log().Info("this host has slept, or its clock was set; calling its peers", zap.Duration("for", slept.Round(time.Second)))
	for key, s := range status {
		if s.LastHandshake.IsZero() || !s.Endpoint.IsValid() {
			continue
		}
		l.calls.add(func() {
			if peer := l.peer(key); peer != nil {
				peer.ExpireCurrentKeypairs() // and with it the wait of 5 s
				_ = peer.SendHandshakeInitiation(false)
			}
		})
	}
}
