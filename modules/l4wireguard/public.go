package l4wireguard

import (
	"net"
	"time"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/homeward-relay/homeward/modules/internal/publictcp"
)

// nearby is the round trip below which a client keeps the host's congestion
// control. It stands in the same data centre: whatever is lost, the next round
// trip repairs, and there is nothing for BBR to find out. Its pacing would cost
// the relay a tenth of its throughput and CPU at 2 Gbit/s.
var nearby = time.Millisecond

// tunePublic asks for BBR on the client's side of a connection, where a kernel's
// TCP is below it. The host's root governs whether it is given, by
// net.ipv4.tcp_allowed_congestion_control.
func (h *Handler) tunePublic(cx *layer4.Connection) {
	conn, ok := unwrapTo[*net.TCPConn](cx)
	if !ok {
		return
	}
	if rtt, known := publictcp.RTT(conn); known && rtt < nearby {
		publictcp.BoundUnsent(conn)
		return
	}
	publictcp.Tune(h.logger, conn, publictcp.BBR)
}
