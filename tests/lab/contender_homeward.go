package lab

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() {
	register(homeward{name: "homeward", stack: kernelStack})
	register(homeward{name: "homeward-gvisor", stack: gvisorStack})
	register(homewardBBRHome{homeward{name: "homeward-bbr-home", stack: kernelStack}})
	register(homeward{name: "homeward-both", stack: kernelStack, home: kernelStack})
	register(homeward{name: "homeward-both-gvisor", stack: gvisorStack, home: gvisorStack})
}

const (
	kernelStack = "kernel"
	gvisorStack = "gvisor"
)

// homeward is our relay on one of its stacks.
type homeward struct {
	name, stack string

	// home is the stack of our own binary at home. If it is empty, home is
	// wireguard-go on a TUN, as most homes have it.
	home string
}

// homewardBBRHome is homeward with a home whose administrator has chosen BBR.
type homewardBBRHome struct{ homeward }

// CongestionControl implements tuned.
func (homewardBBRHome) CongestionControl() string { return bbr }

func (h homewardBBRHome) Obtain(t testing.TB) (string, error) {
	versions, err := h.homeward.Obtain(t)
	return "BBR at home; " + versions, err
}

func (h homeward) Name() string { return h.name }

func (h homeward) Obtain(t testing.TB) (string, error) {
	out, err := exec.Command(testnet.FastCaddy(t), "version").Output()
	if err != nil {
		return "", fmt.Errorf("asking for the version: %w", err)
	}
	home := "wireguard-go at home"
	if h.home != "" {
		home = "the same with the " + h.home + " stack at home"
	}
	return "this tree, " + h.stack + " stack, MTU 1420; " + home + "; Caddy " + strings.Fields(string(out))[0], nil
}

func (h homeward) Start(t testing.TB, w *World) Running {
	t.Helper()
	keys := testnet.NewTunnelKeys(t)
	relay := testnet.NewRelay(t, w.Relay)
	relay.UseBinary(testnet.FastCaddy(t))
	relay.Secret(t, "wg0.key", keys.Relay.Private)
	certificate := w.ca.Issue(t, testnet.Domain)
	relay.Start(t, fmt.Sprintf(`{
	storage file_system %s
	wireguard wg0 {
		private_key {file.%s}
		address %s/24
		listen_port 51820
		mtu 1420
		stack %s
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
`, filepath.Join(relay.Folder, "storage"), filepath.Join(relay.Folder, "wg0.key"), testnet.RelayTunnelIP, h.stack, keys.Home.Public, testnet.HomeTunnelIP,
		layer4Servers(plainPorts(), "", "udp/", "wireguard home:%d", "wireguard home:%d"),
		testnet.Domain, certificate.Cert, certificate.Key, w.ca.File))
	if h.home != "" {
		home := h.startHome(t, w, keys)
		return Running{Relay: []*testnet.Process{relay.Process}, Home: []*testnet.Process{home.Process}}
	}
	home := testnet.StartHome(t, w.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return Running{Relay: []*testnet.Process{relay.Process}, Home: []*testnet.Process{home.Process()}}
}

// startHome starts our binary at home, which passes on to home's services what
// comes by the tunnel.
func (h homeward) startHome(t testing.TB, w *World, keys testnet.TunnelKeys) *testnet.Relay {
	t.Helper()
	home := testnet.NewRelay(t, w.Home)
	home.UseBinary(testnet.FastCaddy(t))
	home.Secret(t, "wg0.key", keys.Home.Private)
	home.Start(t, fmt.Sprintf(`{
	storage file_system %s
	wireguard wg0 {
		private_key {file.%s}
		address %s/24
		mtu 1420
		stack %s
		peer relay {
			public_key %s
			allowed_ips %s/32
			endpoint %s:51820
			persistent_keepalive 25s
		}
	}
	layer4 {
%s	}
}
`, filepath.Join(home.Folder, "storage"), filepath.Join(home.Folder, "wg0.key"), testnet.HomeTunnelIP, h.home, keys.Relay.Public, testnet.RelayTunnelIP, testnet.Endpoint,
		layer4Servers(Ports, "wireguard/wg0", "wireguard+udp/wg0", "proxy 127.0.0.1:%d", "proxy udp/127.0.0.1:%d")))
	return home
}

// layer4Servers are the servers of a layer4 block for TCP ports and UDPPorts,
// listening at addresses that begin so, each with a handler for its port.
func layer4Servers(ports []int, tcp, udp, tcpHandler, udpHandler string) string {
	var servers strings.Builder
	server := func(address string, port int, handler string) {
		fmt.Fprintf(&servers, "\t\t%s:%d {\n\t\t\troute {\n\t\t\t\t%s\n\t\t\t}\n\t\t}\n", address, port, fmt.Sprintf(handler, port))
	}
	for _, port := range ports {
		server(tcp, port, tcpHandler)
	}
	for _, port := range UDPPorts {
		server(udp, port, udpHandler)
	}
	return servers.String()
}
