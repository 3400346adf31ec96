package tests

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestRoaming keeps an SSH session open while the line at home changes under
// it. Nobody logs in again: the session goes on by itself.
func TestRoaming(t *testing.T) {
	for _, tt := range []struct {
		name       string
		newAddress bool
	}{
		{"the NAT forgets", false},
		{"home gets another address", true},
	} {
		for _, keepalive := range []int{5, 25} {
			t.Run(fmt.Sprintf("%s, keepalive %d", tt.name, keepalive), func(t *testing.T) {
				t.Parallel() // they mostly wait
				w := newWorld(t)
				w.relay.UseBinary(testnet.FastCaddy(t))
				w.home = testnet.NewHome(t, w.Home, w.keys, testnet.HomeConfig{Keepalive: keepalive})
				server := services.StartSSH(t, w.Home)
				w.start(t, w.ports(t))
				session := openSession(t, w, server)
				if err := session.echo("before"); err != nil {
					t.Fatal(err)
				}
				const rounds = 3
				var took []float64
				for round := range rounds {
					if err := w.Reconnect(tt.newAddress); err != nil {
						t.Fatal(err)
					}
					begin := time.Now()
					if err := session.echo(fmt.Sprint("after ", round)); err != nil {
						t.Fatal(err)
					}
					took = append(took, time.Since(begin).Seconds())
				}
				session.finish(t)
				if logins := server.Logins(); logins != 1 {
					t.Errorf("%d logins, want the one session", logins)
				}
				figure(t, "SSH session, %s, keepalive %d s: bytes flow again after %.1f s (%.1f to %.1f, %d times).",
					tt.name, keepalive, median(took), slices.Min(took), slices.Max(took), rounds)
			})
		}
	}
}

// TestHomeIsRenumbered keeps an SSH session open while home's line, over which the
// tunnel runs by IPv6, gets another prefix.
func TestHomeIsRenumbered(t *testing.T) {
	const keepalive = 25
	for _, tt := range []struct {
		name       string
		own        bool
		deprecated bool
	}{
		{"our binary at home, its old address gone", true, false},
		{"our binary at home, its old address deprecated", true, true},
		{"wireguard-go at home, its old address gone", false, false},
		{"wireguard-go at home, its old address deprecated", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			w := newWorld(t)
			w.relay.UseBinary(testnet.FastCaddy(t))
			w.Home.SetHosts(t, map[string]string{testnet.Endpoint: testnet.RelayIP6})
			server := services.StartSSH(t, w.Home)
			var own *testnet.Relay
			if tt.own {
				w.relay.Start(t, w.ports(t))
				own = startOwnHome(t, w, keepalive)
			} else {
				w.home = testnet.NewHome(t, w.Home, w.keys, testnet.HomeConfig{Keepalive: keepalive})
				w.start(t, w.ports(t))
			}
			session := openSession(t, w, server)
			if err := session.echo("before"); err != nil {
				t.Fatal(err)
			}
			const rounds = 2
			var took []float64
			for round := range rounds {
				if err := w.Renumber(tt.deprecated); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				if err := session.echo(fmt.Sprint("after ", round)); err != nil {
					t.Fatal(err)
				}
				took = append(took, time.Since(begin).Seconds())
				if own != nil {
					testnet.Eventually(t, 10*time.Second, func() error {
						if told := strings.Count(own.Log.String(), "this host is at another address"); told != round+1 {
							return fmt.Errorf("home has told the relay %d times that it is elsewhere, want %d", told, round+1)
						}
						return nil
					})
				}
			}
			session.finish(t)
			if logins := server.Logins(); logins != 1 {
				t.Errorf("%d logins, want the one session", logins)
			}
			figure(t, "SSH session, home's line has another IPv6 prefix, %s, keepalive %d s: bytes flow again after %.1f s (%.1f to %.1f, %d times).",
				tt.name, keepalive, median(took), slices.Min(took), slices.Max(took), rounds)
		})
	}
}

// TestRelayMoves gives the VM another address. Home, which is our binary, knows it
// by a name that then means the new one, and finds it without a restart.
func TestRelayMoves(t *testing.T) {
	t.Parallel() // it mostly waits
	const (
		newIP     = "203.0.113.6"
		keepalive = 5
	)
	w := newWorld(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	services.Echo(t, w.Home, ":7000", "")
	w.relay.Start(t, w.ports(t))
	startOwnHome(t, w, keepalive)
	echo := func() error {
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
		if err != nil {
			return err
		}
		defer conn.Close()
		return echoOnce(conn, "found")
	}
	testnet.Eventually(t, 20*time.Second, echo)

	w.Relay.IP(t, "addr del "+testnet.RelayIP+"/24 dev eth0", "addr add "+newIP+"/24 dev eth0", "route replace default via 203.0.113.1")
	for _, namespace := range []*testnet.Namespace{w.Client, w.Home} {
		namespace.SetHosts(t, map[string]string{testnet.Endpoint: newIP})
	}
	begin := time.Now()
	testnet.Eventually(t, 2*time.Minute, echo)
	figure(t, "VM with another address behind its name, our binary at home, keepalive %d s: first connection after %.0f s.",
		keepalive, time.Since(begin).Seconds())
}

// TestIPv6IsTakenAgain has a home, our binary, that calls the VM by IPv4 since IPv6 did not
// work when it began, as after a reboot. When it works, home comes over to it, so that the
// VM sees its prefix. Until then, and while it does, a connection that is open stays as
// quick as it was.
func TestIPv6IsTakenAgain(t *testing.T) {
	w := newWorld(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	w.Home.SetHosts(t, map[string]string{
		testnet.Endpoint:                  testnet.RelayIP,
		strings.ToUpper(testnet.Endpoint): testnet.RelayIP6, // a second line for the name
	})
	const closed = `
table ip6 closed {
	chain forward {
		type filter hook forward priority filter
		meta l4proto udp drop
	}
}`
	w.Core.NFT(t, closed)
	services.Echo(t, w.Home, ":7000", "")
	w.relay.Start(t, w.ports(t))
	home := startOwnHome(t, w, 25)
	by := func(is4 bool) {
		t.Helper()
		testnet.Eventually(t, 60*time.Second, func() error {
			if endpoint := w.status(t).Peers[0].Endpoint; !endpoint.IsValid() || endpoint.Addr().Unmap().Is4() != is4 {
				return fmt.Errorf("home speaks from %s", endpoint)
			}
			return nil
		})
	}
	by(true)
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.RelayIP+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	longest := time.Duration(0)
	echo := func() {
		t.Helper()
		begin, buf := time.Now(), []byte("hello")
		conn.SetDeadline(begin.Add(60 * time.Second))
		if _, err := conn.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "hello" {
			t.Fatalf("%q came back: %v", buf, err)
		}
		longest = max(longest, time.Since(begin))
	}
	// A first try, which is in vain.
	for begin := time.Now(); time.Since(begin) < 8*time.Second; {
		echo()
	}
	by(true)

	// It leads to the VM now, but not back, and visitors come while nothing else moves.
	w.Core.NFT(t, "delete table ip6 closed"+strings.Replace(closed, "meta l4proto", "ip6 saddr "+testnet.RelayIP6+" meta l4proto", 1))
	slowest := time.Duration(0)
	for begin := time.Now(); time.Since(begin) < 12*time.Second; {
		dialed := time.Now()
		visitor, err := w.Client.Dial(t.Context(), "tcp", testnet.RelayIP+":7000")
		if err != nil {
			t.Fatal(err)
		}
		if err := echoOnce(visitor, "hello"); err != nil {
			t.Fatal(err)
		}
		visitor.Close()
		slowest = max(slowest, time.Since(dialed))
	}
	w.Core.Output(t, "nft", "delete", "table", "ip6", "closed")
	begin := time.Now()
	for w.status(t).Peers[0].Endpoint.Addr().Unmap().Is4() {
		if echo(); time.Since(begin) > 3*time.Minute {
			t.Fatal("home goes on to speak by IPv4")
		}
	}
	took := time.Since(begin)
	echo()
	home.WaitLog(t, 0, "peer is called by IPv6 again", 20*time.Second)
	figure(t, "Home has IPv6 again: the VM sees it after %.0f s; the longest echo in the meantime took %d ms, and a visitor's while IPv6 led to the VM and not back %d ms.",
		took.Seconds(), longest.Milliseconds(), slowest.Milliseconds())
}
