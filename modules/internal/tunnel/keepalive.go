package tunnel

import (
	"maps"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// keepKeepalives gives each peer the keepalive that it is to have. Turning it on
// sends one at once, and with it the handshake. So it is a call, and waits until
// there is somewhere to call: a handshake that is sent nowhere is lost, and holds
// the next one back for 5 s (whitepaper, section 6.1).
func (l *live) keepKeepalives(status map[PublicKey]PeerStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.config.Peers {
		key, wanted := l.config.Peers[i].PublicKey, l.config.Peers[i].PersistentKeepalive
		if had := l.keepalives[key]; had == wanted || had == 0 && !status[key].Endpoint.IsValid() {
			continue
		}
		l.keepalives[key] = wanted
		l.calls.add(func() { l.turnKeepalive(key) })
	}
}

// turnKeepalive gives a peer the keepalive that it is to have by now.
func (l *live) turnKeepalive(key PublicKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	interval, ok := l.keepalives[key]
	if !ok {
		return // it has been removed
	}
	if err := l.device.IpcSet(keepaliveChange(key, interval)); err != nil {
		l.logger.Error("setting a peer's keepalive", zap.Stringer("public_key", key), zap.Error(err))
	}
}

// forgetKeepalives forgets those of the peers that next does not have. A peer that
// is added again begins without. l.mu is held.
func (l *live) forgetKeepalives(next *Config) {
	stays := make(map[PublicKey]bool)
	for _, peer := range next.Peers {
		stays[peer.PublicKey] = true
	}
	maps.DeleteFunc(l.keepalives, func(key PublicKey, _ time.Duration) bool { return !stays[key] })
}

// speak sends something to every peer that has a session, which is how it learns
// where this end is now. Otherwise one that has nothing to ask for would send its
// keepalives to the former port, until this end has something to send.
func (l *live) speak() {
	answer, err := l.device.IpcGet()
	if err != nil {
		return
	}
	for key, s := range parseStatus(answer) {
		if s.LastHandshake.IsZero() || time.Since(s.LastHandshake) > sessionMax {
			continue
		}
		l.calls.keepalive(l.device, key)
	}
}

// misled are the peers that are being called, in vain so far, at another address
// than next has for them. They are let go of, so that they can be called there at
// once: as in endpointMemory.call, that comes before the endpoint. l.mu is held.
func (l *live) misled(next *Config) (keys []PublicKey) {
	had := make(map[PublicKey]string)
	for i := range l.config.Peers {
		had[l.config.Peers[i].PublicKey] = l.config.Peers[i].Endpoint
	}
	for i := range next.Peers {
		key, endpoint := next.Peers[i].PublicKey, next.Peers[i].Endpoint
		former, err := netip.ParseAddrPort(had[key])
		if err != nil || named(endpoint) || endpoint == "" || endpoint == had[key] {
			continue
		}
		if p := l.presence[key]; p != nil && p.session || l.bind.UnansweredSince(former).IsZero() {
			continue
		}
		if peer := l.peer(key); peer != nil {
			peer.ExpireCurrentKeypairs()
			keys = append(keys, key)
		}
	}
	return keys
}
