package lab

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() { register(haproxy{}) }

// haproxy ends the client's TCP connection on the relay, as we do, and opens
// one of the relay's kernel through a WireGuard interface.
type haproxy struct{}

func (haproxy) Name() string { return "haproxy" }

func (haproxy) Obtain(t testing.TB) (string, error) {
	version, err := install("haproxy")
	if err != nil {
		return "", err
	}
	tunnel, err := builtFrom(testnet.WireGuardGo(t), wireGuardModule)
	return fmt.Sprintf("TCP mode over a TUN of wireguard-go on the relay as root; %s, %s", version, tunnel), err
}

// Unable knows that haproxy forwards TCP alone: of UDP it has syslog and QUIC.
func (haproxy) Unable(need string) string {
	if need == kindUDP {
		return "no UDP"
	}
	return ""
}

func (haproxy) Start(t testing.TB, w *World) Running {
	t.Helper()
	keys := testnet.NewTunnelKeys(t)
	tunnel := startRelayTUN(t, w, keys)
	var text strings.Builder
	// Without timeouts, which it warns of, idle connections live for ever.
	text.WriteString("defaults\n\tmode tcp\n\ttimeout connect 10s\n\ttimeout client 1h\n\ttimeout server 1h\n")
	for _, port := range Ports {
		fmt.Fprintf(&text, "listen home%d\n\tbind :%d\n\tserver home %s:%d\n", port, port, testnet.HomeTunnelIP, port)
	}
	config := filepath.Join(testnet.Folder(t), "haproxy.cfg")
	testnet.WriteFile(t, config, []byte(text.String()), 0o644)
	// In the foreground, as one process of as many threads as there are CPUs.
	proxy := testnet.Start(t, "haproxy", w.Relay.Command("haproxy", "-db", "-f", config))
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Relay: []*testnet.Process{proxy, tunnel.Process()}, Home: []*testnet.Process{home.Process()}}
}
