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
	revoked := map[string]any{"reason": "revoked", "upstream": "home:7"}
	t.Run("TCP", func(t *testing.T) {
		w := newWorld(t)
		w.serveTCP(7, echo)
		port := testnet.FreePort(t, "tcp")
		const servers = "127.0.0.1:$1 {\nroute {\nwireguard home:7\n}\n}"
		w.load(servers, port)
		conn := w.dial(port)
		mustEcho(t, conn, "up")
		w.public = publicKey(tunnel.NewPrivateKey()) // another home
		w.load(servers, port)
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		mustReset(t, conn)
		has(t, w.lines.next("relayed connection"), revoked)
	})
	t.Run("UDP", func(t *testing.T) {
		w := newWorld(t)
		w.serveUDP(7, echoDatagram)
		port := testnet.FreePort(t, "udp")
		const servers = "udp/127.0.0.1:$1 {\nroute {\nwireguard home:7\n}\n}"
		w.load(servers, port)
		mustExchange(t, w.dialUDP(port), "up", "up")
		w.public = publicKey(tunnel.NewPrivateKey())
		w.load(servers, port)
		has(t, w.lines.next("relayed datagrams"), revoked)
	})
}
