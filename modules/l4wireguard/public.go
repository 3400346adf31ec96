package l4wireguard

import (
	"net"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/homeward-relay/homeward/modules/internal/publictcp"
	"github.com/homeward-relay/homeward/modules/internal/relay"
)

// tunePublic asks for BBR on the client's side of a connection, where a kernel's
// TCP is below it and the client is not near. The host's root governs whether it
// is given, by net.ipv4.tcp_allowed_congestion_control. Idle clients are given as
// long to come back as homes are: Go's default is two minutes and a half.
func (h *Handler) tunePublic(cx *layer4.Connection) {
	conn, ok := unwrapTo[*net.TCPConn](cx)
	if !ok {
		return
	}
	// Without keepalive the connection works as well.
	_ = conn.SetKeepAliveConfig(relay.KeepAlive)
	if h.Direct {
		return // the client's side is the tunnel's, which has its own option
	}
	publictcp.Tune(h.logger, conn, "")
}
