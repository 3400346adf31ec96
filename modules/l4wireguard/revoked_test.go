package l4wireguard

import (
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// When a reload takes a peer away, whoever is connected to it is told, and the
// log says why.
func TestRemovedPeerIsRevoked(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	w.serveUDP(7, echoDatagram)
	tcp, udp := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "udp")
	const servers = "127.0.0.1:$1 {\nroute {\nwireguard home:7\n}\n}\nudp/127.0.0.1:$2 {\nroute {\nwireguard home:7\n}\n}"
	w.load(servers, tcp, udp)
	flow := w.dialUDP(udp)
	mustExchange(t, flow, "up", "up")
	conn := w.dial(tcp)
	mustEcho(t, conn, "up")

	w.public = publicKey(tunnel.NewPrivateKey()) // another home
	w.load(servers, tcp, udp)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	mustReset(t, conn)
	has(t, w.lines.next("relayed connection"), map[string]any{"reason": "revoked", "upstream": "home:7"})
	has(t, w.lines.next("relayed datagrams"), map[string]any{"reason": "revoked", "upstream": "home:7"})
}
