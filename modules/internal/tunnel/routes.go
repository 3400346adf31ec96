package tunnel

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// routesAtOnce bounds for how many peers the routing table is asked at a look.
const routesAtOnce = 64

// routes is how packets to the peers leave this host. Where that changes, as
// when a line gets another prefix, or a cable is pulled and there is a radio, a
// peer does not know where we are until we have said something from there. What
// wireguard-go has for this is for its own Bind alone: routineRouteListener in
// https://git.zx2c4.com/wireguard-go/tree/device/sticky_linux.go
type routes struct {
	ways map[PublicKey]way
	next int // the peer to begin with
}

// way is how packets to an endpoint leave this host.
type way struct {
	endpoint netip.AddrPort
	source   netip.Addr // the last that there was
	cut      bool       // there is no route
}

// cut tells whether there is no route to a peer's endpoint.
func (r *routes) cut(key PublicKey) bool { return r.ways[key].cut }

// followRoutes looks how packets to those peers leave to whom this end is to
// stay known, and speaks to those to whom they have begun to leave from another
// address.
func (l *live) followRoutes(r *routes, peers []Peer, status map[PublicKey]PeerStatus) {
	for key := range r.ways {
		if _, ok := status[key]; !ok {
			delete(r.ways, key)
		}
	}
	for range min(len(peers), routesAtOnce) {
		r.next = (r.next + 1) % len(peers)
		peer := &peers[r.next]
		endpoint := status[peer.PublicKey].Endpoint
		if peer.Endpoint == "" && peer.PersistentKeepalive == 0 || !endpoint.IsValid() {
			delete(r.ways, peer.PublicKey)
			continue
		}
		source, was := sourceFor(endpoint), r.ways[peer.PublicKey]
		if was.endpoint != endpoint {
			was = way{endpoint: endpoint, source: source}
		}
		is := way{endpoint, source, !source.IsValid()}
		if is.cut {
			is.source = was.source
		}
		r.ways[peer.PublicKey] = is
		if is.source != was.source && was.source.IsValid() {
			l.speakFrom(peer, endpoint, was.source, is.source)
		}
	}
}

// speakFrom tells a peer that this end is at another address.
func (l *live) speakFrom(peer *Peer, endpoint netip.AddrPort, was, is netip.Addr) {
	// The same endpoint, set anew, has no address to be called from.
	if err := l.device.IpcSet(endpointChange(peer.PublicKey, endpoint)); err != nil {
		l.log().Error("setting peer's endpoint", zap.String("peer", peer.Name), zap.Error(err))
		return
	}
	l.calls.keepalive(l.device, peer.PublicKey)
	l.log().Info("this host is at another address for the peer, and has told it so",
		zap.String("peer", peer.Name), zap.Stringer("was", was), zap.Stringer("is", is))
}

// reopen opens the tunnel's sockets anew.
func (l *live) reopen(reason error) {
	l.mu.Lock()
	port := l.port
	l.mu.Unlock()
	if err := l.device.IpcSet(fmt.Sprintf("listen_port=%d\n", port)); err != nil {
		l.log().Error("the tunnel's sockets have failed and cannot be opened anew; trying again",
			zap.Uint16("listen_port", port), zap.NamedError("reason", reason), zap.Error(err))
		time.AfterFunc(keeperInterval, func() { l.bind.Fail(reason) })
		return
	}
	l.log().Warn("the tunnel's sockets have failed and were opened anew",
		zap.Uint16("listen_port", port), zap.NamedError("reason", reason))
}

// sourceFor is the address from which this host would send to another, the zero
// Addr if it has no route there. Connecting a UDP socket asks the routing table
// and sends nothing.
func sourceFor(remote netip.AddrPort) netip.Addr {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(remote))
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}
