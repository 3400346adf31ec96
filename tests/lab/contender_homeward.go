package lab

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() { register(homeward{}) }

// homeward is our relay, with wireguard-go on a TUN at home, as most homes
// have it.
type homeward struct{}

func (homeward) Name() string { return "homeward" }

func (homeward) Obtain(t testing.TB) (string, error) {
	out, err := exec.Command(testnet.FastCaddy(t), "version").Output()
	if err != nil {
		return "", fmt.Errorf("asking for the version: %w", err)
	}
	return "this tree, gVisor stack, MTU 1420; Caddy " + strings.Fields(string(out))[0], nil
}

func (homeward) Start(t testing.TB, w *World) Running {
	t.Helper()
	keys := testnet.NewTunnelKeys(t)
	relay := testnet.NewRelay(t, w.Relay)
	relay.UseBinary(testnet.FastCaddy(t))
	relay.Secret(t, "wg0.key", keys.Relay.Private)
	certificate := w.ca.Issue(t, testnet.Domain)
	var servers strings.Builder
	for _, port := range plainPorts() {
		fmt.Fprintf(&servers, "\t\t:%d {\n\t\t\troute {\n\t\t\t\twireguard home:%d\n\t\t\t}\n\t\t}\n", port, port)
	}
	for _, port := range UDPPorts {
		fmt.Fprintf(&servers, "\t\tudp/:%d {\n\t\t\troute {\n\t\t\t\twireguard home:%d\n\t\t\t}\n\t\t}\n", port, port)
	}
	relay.Start(t, fmt.Sprintf(`{
	storage file_system %s
	wireguard wg0 {
		private_key {file.%s}
		address %s/24
		listen_port 51820
		mtu 1420
		peer home {
			public_key %s
			allowed_ips %s/32
		}
	}
	layer4 {
%s	}
}
%s {
	tls %s %s
	reverse_proxy https://home {
		transport wireguard {
			tls_trust_pool file %s
		}
	}
}
`, filepath.Join(relay.Folder, "storage"), filepath.Join(relay.Folder, "wg0.key"), testnet.RelayTunnelIP, keys.Home.Public, testnet.HomeTunnelIP, servers.String(),
		testnet.Domain, certificate.Cert, certificate.Key, w.ca.File))
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Relay: []*testnet.Process{relay.Process}, Home: []*testnet.Process{home.Process()}}
}
