package testnet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Home is a home end that people have already: wireguard-go on a TUN,
// configured with wg(8) and ip(8), in a namespace behind the router.
type Home struct {
	// Namespace is where the home's services run.
	*Namespace

	// Interface is the tunnel's. Its name is unique on the machine, since
	// wireguard-go keeps its control sockets in one folder.
	Interface string

	config  HomeConfig
	keys    TunnelKeys
	process *Process
}

// HomeConfig says how a home differs from the usual one. The zero value is
// the usual one.
type HomeConfig struct {
	// Address of the tunnel's interface. Default: HomeTunnelIP/24.
	Addresses []string

	// Endpoint of the relay. Default: the relay's name, port 51820.
	Endpoint string

	// AllowedIPs of the relay. Default: its tunnel address.
	AllowedIPs []string

	// Keepalive in seconds; default 25, negative for none.
	Keepalive int

	// MTU of the interface. Default: 1420, as wg-quick has it.
	MTU int
}

// StartHome makes a home in a namespace and starts its WireGuard.
func StartHome(t testing.TB, namespace *Namespace, keys TunnelKeys, config HomeConfig) *Home {
	t.Helper()
	h := NewHome(t, namespace, keys, config)
	h.Up(t)
	return h
}

// NewHome makes a home in a namespace, with its WireGuard not yet up. It is
// better to start the relay first: a handshake that finds nobody is sent
// again after five seconds only.
func NewHome(t testing.TB, namespace *Namespace, keys TunnelKeys, config HomeConfig) *Home {
	t.Helper()
	Need(t, "wg")
	if len(config.Addresses) == 0 {
		config.Addresses = []string{HomeTunnelIP + "/24"}
	}
	if config.Endpoint == "" {
		config.Endpoint = Endpoint + ":51820"
	}
	if len(config.AllowedIPs) == 0 {
		config.AllowedIPs = []string{RelayTunnelIP + "/32"}
	}
	if config.Keepalive == 0 {
		config.Keepalive = 25
	}
	if config.MTU == 0 {
		config.MTU = 1420
	}
	return &Home{
		Namespace: namespace,
		Interface: interfaceName(namespace),
		config:    config,
		keys:      keys,
	}
}

// interfaceName is the namespace's number with the first letter of its role,
// unless that is home: an interface's name has at most 15 characters.
func interfaceName(namespace *Namespace) string {
	name := strings.TrimPrefix(namespace.Name, namePrefix)
	last := strings.LastIndexByte(name, '-')
	number, role := name[:last], name[last+1:]
	if role != "home" {
		number += role[:1]
	}
	return "wg" + number
}

// Up starts WireGuard at home.
func (h *Home) Up(t testing.TB) {
	t.Helper()
	cmd := h.Command(WireGuardGo(t), "-f", h.Interface)
	h.process = Start(t, "wireguard-go", cmd)
	// The control socket of a home that was killed stays behind, so what tells
	// is that somebody answers.
	Eventually(t, 10*time.Second, func() error {
		return exec.Command("wg", "show", h.Interface).Run()
	})

	keepalive := "off"
	if h.config.Keepalive > 0 {
		keepalive = fmt.Sprint(h.config.Keepalive)
	}
	preshared := ""
	if h.keys.Preshared != "" {
		preshared = "PresharedKey = " + h.keys.Preshared
	}
	file := filepath.Join(Folder(t), "wg.conf")
	WriteFile(t, file, fmt.Appendf(nil, `[Interface]
PrivateKey = %s
[Peer]
PublicKey = %s
%s
Endpoint = %s
AllowedIPs = %s
PersistentKeepalive = %s
`, h.keys.Home.Private, h.keys.Relay.Public, preshared,
		h.config.Endpoint, strings.Join(h.config.AllowedIPs, ", "), keepalive), 0o600)
	h.Output(t, "wg", "setconf", h.Interface, file)

	commands := []string{fmt.Sprintf("link set %s mtu %d up", h.Interface, h.config.MTU)}
	for _, address := range h.config.Addresses {
		commands = append(commands, fmt.Sprintf("addr add %s dev %s", address, h.Interface))
	}
	for _, allowed := range h.config.AllowedIPs {
		commands = append(commands, fmt.Sprintf("route replace %s dev %s", allowed, h.Interface))
	}
	h.IP(t, commands...)
}

// SetPreshared gives the tunnel another preshared key, for its next handshake and
// for when it is started again.
func (h *Home) SetPreshared(t testing.TB, key string) {
	t.Helper()
	h.keys.Preshared = key
	file := filepath.Join(Folder(t), "home.psk")
	WriteFile(t, file, []byte(key+"\n"), 0o600)
	Run(t, "wg", "set", h.Interface, "peer", h.keys.Relay.Public, "preshared-key", file)
}

// SetEndpoint tells WireGuard at home where the relay is, which keeps the address
// that it once had for a name.
func (h *Home) SetEndpoint(t testing.TB, endpoint string) {
	t.Helper()
	Run(t, "wg", "set", h.Interface, "peer", h.keys.Relay.Public, "endpoint", endpoint)
}

// Down stops WireGuard at home, as a power cut would: nobody is told. The
// services go on; the interface and its addresses are gone.
func (h *Home) Down(t testing.TB) {
	t.Helper()
	killTUN(t, h.Namespace, h.process, h.Interface)
}

// killTUN kills a wireguard-go, and waits until its interface is gone.
func killTUN(t testing.TB, namespace *Namespace, process *Process, name string) {
	t.Helper()
	process.Kill()
	os.Remove(controlSocket(name))
	// The TUN goes with its process, a moment later.
	Eventually(t, 5*time.Second, func() error {
		if namespace.Command("ip", "link", "show", name).Run() == nil {
			return fmt.Errorf("%s is still there", name)
		}
		return nil
	})
}

// controlSocket is where wg(8) finds wireguard-go.
func controlSocket(name string) string { return "/var/run/wireguard/" + name + ".sock" }

// Process is home's wireguard-go.
func (h *Home) Process() *Process { return h.process }

// Log is wireguard-go's log.
func (h *Home) Log() *Log { return h.process.Log }

// Handshaken reports whether home has had a handshake with the relay.
func (h *Home) Handshaken() bool {
	out, err := exec.Command("ip", h.exec("wg", []string{"show", h.Interface, "latest-handshakes"})...).Output()
	fields := strings.Fields(string(out))
	return err == nil && len(fields) == 2 && fields[1] != "0"
}

// WaitHandshake waits for home's first handshake with the relay.
func (h *Home) WaitHandshake(t testing.TB) {
	t.Helper()
	Eventually(t, 15*time.Second, func() error {
		if !h.Handshaken() {
			return fmt.Errorf("no handshake between home and relay")
		}
		return nil
	})
}
