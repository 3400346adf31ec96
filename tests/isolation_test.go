package tests

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

var relayTunnelIP = netip.MustParseAddr(testnet.RelayTunnelIP)

// TestHomeIsolation gives the VM to somebody else, who has its key and its whole
// kernel: home's end of the tunnel shows what it is to show and nothing of its
// host, of its host's network, or of itself.
func TestHomeIsolation(t *testing.T) {
	for _, stack := range []string{"gvisor", "kernel"} {
		t.Run(stack, func(t *testing.T) {
			w := newWorld(t)
			// What must not be reached: on loopback, on all addresses of the host,
			// and on another machine.
			var reached atomic.Bool
			trap := func(namespace *testnet.Namespace, address string) {
				services.Serve(t, namespace, address, func(net.Conn) { reached.Store(true) })
			}
			trap(w.Home, "127.0.0.1:8080")
			trap(w.Home, "[::1]:8080")
			trap(w.Home, ":7000")
			w.Router.IP(t, "addr add 192.168.178.30/24 dev lan")
			trap(w.Router, "192.168.178.30:7000")
			services.Echo(t, w.Home, "127.0.0.1:22", "127.0.0.1:19132")
			services.Echo(t, w.Home, "", ":7001")
			// A host that routes, as Docker's do.
			w.Home.Sysctl(t, "net.ipv4.ip_forward", "1")
			w.Home.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")

			// The VM, with nothing between its kernel and the tunnel.
			keys := testnet.TunnelKeys{Relay: w.keys.Home, Home: w.keys.Relay}
			attacker := testnet.NewHome(t, w.Relay, keys, testnet.HomeConfig{
				Addresses:  []string{testnet.RelayTunnelIP + "/24", "fd77::1/64"},
				AllowedIPs: []string{"10.77.0.2/32", "fd77::2/128"},
				// Until home has called.
				Endpoint: testnet.RouterIP + ":9",
			})
			attacker.Up(t)
			testnet.Run(t, "wg", "set", attacker.Interface, "listen-port", "51820",
				"peer", w.keys.Home.Public, "allowed-ips", "0.0.0.0/0,::/0")
			own := newOwnHome(t, w)
			own.UseBinary(testnet.FastCaddy(t))
			own.Start(t, replace(t, w.ownExample(t, own, "home-transparent.Caddyfile", w.public, nil),
				"		peer relay {", "		stack "+stack+"\n		peer relay {"))
			attacker.WaitHandshake(t)

			p := newProber(t, w.Relay, attacker.Interface)
			want := []int{22, 80, 443}
			for _, scan := range []struct{ from, to string }{{testnet.RelayTunnelIP, testnet.HomeTunnelIP}, {"fd77::1", "fd77::2"}} {
				begin := time.Now()
				if open := p.scan(netip.MustParseAddr(scan.from), netip.MustParseAddr(scan.to)); !slices.Equal(open, want) {
					t.Errorf("%s has open TCP ports %v, want %v", scan.to, open, want)
				}
				t.Logf("scanned %s in %v", scan.to, rounded(time.Since(begin)))
			}

			p.onlyAnswers(relayTunnelIP, netip.AddrPortFrom(netip.MustParseAddr(testnet.HomeTunnelIP), 443),
				"127.0.0.1:8080", "127.0.0.1:2019", "127.0.0.1:443", "127.0.0.2:443", "[::1]:8080", "[::1]:443",
				testnet.HomeLANIP+":7000", testnet.HomeLANIP+":443", "["+testnet.HomeIP6+"]:7000", "["+testnet.HomeIP6+"]:443",
				"192.168.178.30:7000", "192.168.178.1:7000", testnet.ClientIP+":80", "10.77.0.3:443")

			// UDP: the host's own is not there, and the one that is bound answers.
			silent := dialUDPAt(t, w.Relay, testnet.HomeTunnelIP+":7001")
			silent.Write([]byte("is anybody there?"))
			if err := (udpClient{dialUDPAt(t, w.Relay, testnet.HomeTunnelIP+":19132"), make(map[string]bool)}).echo("here"); err != nil {
				t.Error(err)
			}
			silent.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, err := silent.Read(make([]byte, 100)); err == nil {
				t.Errorf("a UDP port of the host has answered %d bytes", n)
			}
			if reached.Load() {
				t.Error("a service that is not on the tunnel was reached through it")
			}
		})
	}
}

func dialUDPAt(t *testing.T, from *testnet.Namespace, address string) net.Conn {
	t.Helper()
	conn, err := from.Dial(t.Context(), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestPeerIsolation has two homes at one relay, of which one tries to get to the
// other, and to the VM: it gets to what the relay listens on inside the tunnel.
func TestPeerIsolation(t *testing.T) {
	w := newWorld(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	var reached atomic.Bool
	trap := func(namespace *testnet.Namespace, address string) {
		services.Serve(t, namespace, address, func(net.Conn) { reached.Store(true) })
	}
	trap(w.Home, ":7000")
	trap(w.Relay, ":7777")
	trap(w.Relay, "127.0.0.1:8080")
	// A host that routes, as Docker's do.
	w.Relay.Sysctl(t, "net.ipv4.ip_forward", "1")

	_, second := w.AddHome(t)
	keys := testnet.TunnelKeys{Relay: w.keys.Relay, Home: testnet.NewKey(t)}
	attacker := testnet.NewHome(t, second, keys, testnet.HomeConfig{
		Addresses: []string{"10.77.0.3/24"},
	})
	text := replace(t, w.ports(t), "		peer home {", fmt.Sprintf(`		peer parents {
			public_key %s
			allowed_ips 10.77.0.3/32
		}
		peer home {`, keys.Home.Public))
	w.start(t, replace(t, text, "		:2022 {", `		wireguard/wg0:9 {
			route {
				echo
			}
		}
		:2022 {`))
	attacker.Up(t)
	attacker.WaitHandshake(t)
	testnet.Run(t, "wg", "set", attacker.Interface, "peer", w.keys.Relay.Public, "allowed-ips", "0.0.0.0/0,::/0")

	p := newProber(t, second, attacker.Interface)
	own := netip.MustParseAddr("10.77.0.3")
	begin := time.Now()
	if open := p.scan(own, relayTunnelIP); !slices.Equal(open, []int{9}) {
		t.Errorf("the relay has open TCP ports %v inside the tunnel, want 9 alone", open)
	}
	t.Logf("scanned in %v", rounded(time.Since(begin)))
	p.onlyAnswers(own, netip.AddrPortFrom(relayTunnelIP, 9),
		testnet.HomeTunnelIP+":7000", testnet.HomeTunnelIP+":22", "127.0.0.1:8080", "127.0.0.1:2019", "127.0.0.1:9", "[::1]:9",
		testnet.RelayIP+":7777", testnet.RelayIP+":2022", "203.0.113.1:7000", testnet.ClientIP+":7000", testnet.HomeLANIP+":7000")

	// Nor in another home's name.
	p.knock(netip.MustParseAddr(testnet.HomeTunnelIP), netip.AddrPortFrom(relayTunnelIP, 9))
	p.onlyAnswers(own, netip.AddrPortFrom(relayTunnelIP, 9))

	// The way that is meant is open, or the rest would prove nothing.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := second.Dial(ctx, "tcp", testnet.RelayTunnelIP+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := echoOnce(conn, "hello"); err != nil {
		t.Error(err)
	}
	if reached.Load() {
		t.Error("one peer has reached the other, or the relay's host")
	}
}
