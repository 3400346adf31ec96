package lab

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() { register(new(wireproxy)) }

// wireproxy is wireguard-go with its own netstack in a program that people
// use, with TCP ports that lead into the tunnel.
type wireproxy struct{ program string }

func (*wireproxy) Name() string { return "wireproxy" }

func (p *wireproxy) Obtain(testing.TB) (versions string, err error) {
	folder, err := buildTool("wireproxy", "github.com/pufferffish/wireproxy/cmd/wireproxy")
	if err != nil {
		return "", err
	}
	p.program = filepath.Join(folder, "wireproxy")
	versions, err = builtFrom(p.program, "github.com/pufferffish/wireproxy", wireGuardModule, "gvisor.dev/gvisor")
	return "TCPClientTunnel, built without suah.dev/protect (pledge and unveil, for OpenBSD); " + versions, err
}

// Unable knows that UDP is on its README's list of what is to be done, and
// that it closes its side to home only when home has closed too.
func (*wireproxy) Unable(need string) string {
	switch need {
	case kindUDP:
		return "no UDP"
	case needHalfClose:
		return "the client's half-close never reaches home"
	}
	return ""
}

func (p *wireproxy) Start(t testing.TB, w *World) Running {
	t.Helper()
	keys := testnet.NewTunnelKeys(t)
	var text strings.Builder
	fmt.Fprintf(&text, `[Interface]
Address = %s/32
PrivateKey = %s
ListenPort = 51820
MTU = 1420
[Peer]
PublicKey = %s
AllowedIPs = %s/32
`, testnet.RelayTunnelIP, keys.Relay.Private, keys.Home.Public, testnet.HomeTunnelIP)
	for _, port := range Ports {
		fmt.Fprintf(&text, "[TCPClientTunnel]\nBindAddress = 0.0.0.0:%d\nTarget = %s:%d\n", port, testnet.HomeTunnelIP, port)
	}
	config := filepath.Join(testnet.Folder(t), "wireproxy.conf")
	testnet.WriteFile(t, config, []byte(text.String()), 0o600)
	relay := testnet.Start(t, "wireproxy", w.Relay.Command(p.program, "--silent", "--config", config))
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Relay: []*testnet.Process{relay}, Home: []*testnet.Process{home.Process()}}
}
