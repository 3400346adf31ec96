package l4wireguard

import (
	"net"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/homeward-relay/homeward/modules/internal/publictcp"
)

// tunePublic asks for BBR on the client's side of a connection, where a kernel's
// TCP is below it and the client is not near. The host's root governs whether it
// is given, by net.ipv4.tcp_allowed_congestion_control.
func (h *Handler) tunePublic(cx *layer4.Connection) {
	if conn, ok := unwrapTo[*net.TCPConn](cx); ok {
		publictcp.Tune(h.logger, conn, "")
	}
}
