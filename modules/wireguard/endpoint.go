package wireguard

import (
	"net/netip"
	"time"
)

// HasPeer tells whether a tunnel of this configuration has a peer of that name.
func (a *App) HasPeer(name string) bool {
	_, ok := a.peers[name]
	return ok
}

// PeerEndpoint returns the address that a peer last spoke from, and when something last
// came from it. Both are zero while nothing has, since the tunnel came up.
func (a *App) PeerEndpoint(name string) (address netip.Addr, heard time.Time) {
	c, ok := a.peers[name]
	if !ok {
		return
	}
	for _, peer := range c.claim.Tunnel().Status() {
		if peer.Name == name && !peer.LastReceived.IsZero() {
			return peer.Endpoint.Addr().Unmap(), peer.LastReceived
		}
	}
	return
}
