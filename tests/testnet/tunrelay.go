package testnet

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TUNRelay is the relay that most guides set up: wireguard-go on a TUN, IP
// forwarding, DNAT and masquerade, all of which need root there.
type TUNRelay struct {
	// Namespace is the relay's.
	*Namespace

	// Interface is the tunnel's. Its name is unique on the machine, as home's.
	Interface string

	keys    TunnelKeys
	process *Process
}

// NewTUNRelay makes a relay in a namespace, with its WireGuard not yet up.
func NewTUNRelay(namespace *Namespace, keys TunnelKeys) *TUNRelay {
	return &TUNRelay{
		Namespace: namespace,
		Interface: "wg" + strings.TrimSuffix(strings.TrimPrefix(namespace.Name, namePrefix), "-relay") + "r",
		keys:      keys,
	}
}

// Up starts WireGuard on the relay. It knows home's key and not where home is.
func (r *TUNRelay) Up(t testing.TB) {
	t.Helper()
	r.process = Start(t, "the relay's wireguard-go", r.Command(WireGuardGo(t), "-f", r.Interface))
	Eventually(t, 10*time.Second, func() error { return exec.Command("wg", "show", r.Interface).Run() })
	r.Configure(t, r.Interface)
}

// Configure gives a WireGuard interface its keys and the relay's address in the
// tunnel, and brings it up.
func (r *TUNRelay) Configure(t testing.TB, name string) {
	t.Helper()
	config := filepath.Join(Folder(t), "wg.conf")
	WriteFile(t, config, fmt.Appendf(nil, `[Interface]
PrivateKey = %s
ListenPort = 51820
[Peer]
PublicKey = %s
AllowedIPs = %s/32
`, r.keys.Relay.Private, r.keys.Home.Public, HomeTunnelIP), 0o600)
	r.Output(t, "wg", "setconf", name, config)
	r.IP(t,
		fmt.Sprintf("addr add %s/24 dev %s", RelayTunnelIP, name),
		fmt.Sprintf("link set %s mtu 1420 up", name),
	)
}

// Kill ends WireGuard on the relay. The kernel goes on, with its rules and the
// connections that it tracks; the interface and its addresses are gone.
func (r *TUNRelay) Kill(t testing.TB) {
	t.Helper()
	killTUN(t, r.Namespace, r.process, r.Interface)
}

// Process is the relay's wireguard-go.
func (r *TUNRelay) Process() *Process { return r.process }

// ForwardHome makes a relay's kernel forward ports of TCP and UDP through a
// tunnel's interface to home's address in the tunnel.
func (n *Namespace) ForwardHome(t testing.TB, tun string, tcp, udp []int) {
	t.Helper()
	var rules strings.Builder
	for _, forwarded := range []struct {
		network string
		ports   []int
	}{{"tcp", tcp}, {"udp", udp}} {
		if len(forwarded.ports) > 0 {
			fmt.Fprintf(&rules, "\t\tiifname \"eth0\" %s dport { %s } dnat to %s\n", forwarded.network, NFTPorts(forwarded.ports), HomeTunnelIP)
		}
	}
	n.Sysctl(t, "net.ipv4.ip_forward", "1")
	n.NFT(t, fmt.Sprintf(`
table ip home {
	chain in {
		type nat hook prerouting priority dstnat
%s	}
	chain out {
		type nat hook postrouting priority srcnat
		oifname "%s" masquerade
	}
}`, &rules, tun))
}

// NFTPorts is what nft has between the braces of a set of ports.
func NFTPorts(ports []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]")
}
