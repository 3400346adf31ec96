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
	tun, relay := startRelayTUN(t, w, keys)
	forwardHome(t, w, tun, Ports)
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Relay: []*testnet.Process{relay}, Home: []*testnet.Process{home.Process()}}
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
	configureRelay(t, w, name, keys)
	forwardHome(t, w, name, Ports)
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Home: []*testnet.Process{home.Process()}}
}

// startRelayTUN starts wireguard-go on the relay, with an interface that has
// the relay's address in the tunnel, and returns the interface's name.
func startRelayTUN(t testing.TB, w *World, keys testnet.TunnelKeys) (name string, process *testnet.Process) {
	t.Helper()
	name = relayTUN(w)
	process = testnet.Start(t, "the relay's wireguard-go", w.Relay.Command(testnet.WireGuardGo(t), "-f", name))
	testnet.Eventually(t, 10*time.Second, func() error { return exec.Command("wg", "show", name).Run() })
	configureRelay(t, w, name, keys)
	return name, process
}

// relayTUN is the name of the relay's interface. wireguard-go keeps the
// control sockets of all namespaces in one folder; a name of this form is
// removed after a run that was killed.
func relayTUN(w *World) string {
	return "wg" + strings.TrimSuffix(strings.TrimPrefix(w.Relay.Name, "hw"), "-relay") + "r"
}

// configureRelay gives a WireGuard interface on the relay its keys and its
// address in the tunnel, and brings it up.
func configureRelay(t testing.TB, w *World, name string, keys testnet.TunnelKeys) {
	t.Helper()
	config := filepath.Join(testnet.Folder(t), "wg.conf")
	testnet.WriteFile(t, config, fmt.Appendf(nil, `[Interface]
PrivateKey = %s
ListenPort = 51820
[Peer]
PublicKey = %s
AllowedIPs = %s/32
`, keys.Relay.Private, keys.Home.Public, testnet.HomeTunnelIP), 0o600)
	w.Relay.Output(t, "wg", "setconf", name, config)
	w.Relay.IP(t,
		fmt.Sprintf("addr add %s/24 dev %s", testnet.RelayTunnelIP, name),
		fmt.Sprintf("link set %s mtu 1420 up", name),
	)
}

// forwardHome makes the relay's kernel forward TCP ports and UDPPorts through a
// tunnel's interface to home's address in the tunnel.
func forwardHome(t testing.TB, w *World, tun string, ports []int) {
	t.Helper()
	w.Relay.Sysctl(t, "net.ipv4.ip_forward", "1")
	w.Relay.NFT(t, fmt.Sprintf(`
table ip home {
	chain in {
		type nat hook prerouting priority dstnat
		iifname "eth0" tcp dport { %s } dnat to %s
		iifname "eth0" udp dport { %s } dnat to %s
	}
	chain out {
		type nat hook postrouting priority srcnat
		oifname "%s" masquerade
	}
}`, nftPorts(ports), testnet.HomeTunnelIP, nftPorts(UDPPorts), testnet.HomeTunnelIP, tun))
}

// nftPorts is what nft has between the braces of a set of ports.
func nftPorts(ports []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]")
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
