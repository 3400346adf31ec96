package lab

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() {
	register(wireGuardGo{})
	register(wireGuardKernel{})
	register(stockNetstack{})
}

const wireGuardModule = "golang.zx2c4.com/wireguard"

// wireGuardGo is WireGuard on the relay as most guides have it: an interface,
// IP forwarding and DNAT, all of which need root there.
type wireGuardGo struct{}

func (wireGuardGo) Name() string { return "wireguard-go" }

func (wireGuardGo) Obtain(t testing.TB) (string, error) {
	versions, err := builtFrom(testnet.WireGuardGo(t), wireGuardModule)
	return "TUN on the relay as root, nft DNAT and masquerade; " + versions, err
}

func (wireGuardGo) Start(t testing.TB, w *World) Running {
	t.Helper()
	keys := testnet.NewTunnelKeys(t)
	relay := startRelayTUN(t, w, keys)
	w.Relay.ForwardHome(t, relay.Interface, Ports, UDPPorts)
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Relay: []*testnet.Process{relay.Process()}, Home: []*testnet.Process{home.Process()}}
}

// wireGuardKernel is wireGuardGo with the kernel's WireGuard on the relay.
type wireGuardKernel struct{}

func (wireGuardKernel) Name() string { return "wireguard-kernel" }

func (wireGuardKernel) Obtain(t testing.TB) (string, error) {
	probe := testnet.NewNamespace(t, "probe")
	if out, err := probe.Command("ip", "link", "add", "wg0", "type", "wireguard").CombinedOutput(); err != nil {
		return "", fmt.Errorf("this kernel has no WireGuard: %s", bytes.TrimSpace(out))
	}
	out, err := exec.Command("uname", "-r").Output()
	return "on the relay, nft DNAT and masquerade; Linux " + strings.TrimSpace(string(out)), err
}

// Start starts a relay without processes: the kernel's work is on no account.
func (wireGuardKernel) Start(t testing.TB, w *World) Running {
	t.Helper()
	const name = "wg0"
	keys := testnet.NewTunnelKeys(t)
	w.Relay.IP(t, "link add "+name+" type wireguard")
	testnet.NewTUNRelay(w.Relay, keys).Configure(t, name)
	w.Relay.ForwardHome(t, name, Ports, UDPPorts)
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Home: []*testnet.Process{home.Process()}}
}

// startRelayTUN starts wireguard-go on the relay, with an interface that has
// the relay's address in the tunnel.
func startRelayTUN(t testing.TB, w *World, keys testnet.TunnelKeys) *testnet.TUNRelay {
	t.Helper()
	relay := testnet.NewTUNRelay(w.Relay, keys)
	relay.Up(t)
	return relay
}

// stockNetstack is a relay of wireguard-go's own netstack, as several
// programs have it.
type stockNetstack struct{}

func (stockNetstack) Name() string { return "stock-netstack" }

func (stockNetstack) Obtain(t testing.TB) (string, error) {
	versions, err := builtFrom(stockNetstackBinary(t), wireGuardModule, "gvisor.dev/gvisor")
	return "wireguard-go's own netstack and io.Copy, tests/stocknetstack; " + versions, err
}

// Unable knows that its little program forwards TCP alone.
func (stockNetstack) Unable(need string) string {
	if need == kindUDP {
		return "no UDP"
	}
	return ""
}

func stockNetstackBinary(t testing.TB) string {
	t.Helper()
	return testnet.Build(t, "HOMEWARD_STOCKNETSTACK", "stocknetstack", "./tests/stocknetstack")
}

func (stockNetstack) Start(t testing.TB, w *World) Running {
	t.Helper()
	keys := testnet.NewTunnelKeys(t)
	uapi := filepath.Join(testnet.Folder(t), "uapi")
	testnet.WriteFile(t, uapi, fmt.Appendf(nil, "private_key=%s\nlisten_port=51820\npublic_key=%s\nallowed_ip=%s/32\n",
		testnet.Hex(t, keys.Relay.Private), testnet.Hex(t, keys.Home.Public), testnet.HomeTunnelIP), 0o600)
	args := []string{"-uapi", uapi, "-address", testnet.RelayTunnelIP, "-mtu", "1420"}
	for _, port := range Ports {
		args = append(args, "-forward", fmt.Sprintf(":%d=%s:%d", port, testnet.HomeTunnelIP, port))
	}
	relay := testnet.Start(t, "stocknetstack", w.Relay.Command(stockNetstackBinary(t), args...))
	relay.WaitLog(t, 0, "serving", 10*time.Second)
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Relay: []*testnet.Process{relay}, Home: []*testnet.Process{home.Process()}}
}
