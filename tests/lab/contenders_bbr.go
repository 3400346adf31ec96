package lab

import (
	"fmt"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() {
	register(directBBR{})
	register(haproxyBBR{})
}

const bbr = "bbr"

// directBBR is direct with BBR at both ends, which no relay can choose for its
// clients. It shows what the line can carry, and that the line is true: the
// kernel's BBR does on it what it does on a real one.
type directBBR struct{ direct }

func (directBBR) Name() string { return "direct-bbr" }

func (d directBBR) Obtain(t testing.TB) (string, error) {
	versions, err := d.direct.Obtain(t)
	return "BBR at both ends; " + versions, err
}

// CongestionControl implements tuned.
func (directBBR) CongestionControl() string { return bbr }

// haproxyBBR is haproxy whose connections through the tunnel use BBR, which
// takes root on the relay or a host that has it as the default.
type haproxyBBR struct{ haproxy }

func (haproxyBBR) Name() string { return "haproxy-bbr" }

func (h haproxyBBR) Obtain(t testing.TB) (string, error) {
	versions, err := h.haproxy.Obtain(t)
	return "BBR into the tunnel; " + versions, err
}

func (h haproxyBBR) Start(t testing.TB, w *World) Running {
	t.Helper()
	running := h.haproxy.Start(t, w)
	w.Relay.IP(t, fmt.Sprintf("route replace %s/32 dev %s congctl %s", testnet.HomeTunnelIP, testnet.NewTUNRelay(w.Relay, testnet.TunnelKeys{}).Interface, bbr))
	return running
}
