package tests

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// twoRelays is a world with a second VM and a home that is to have tunnels to both.
type twoRelays struct {
	*world
	keys2  testnet.TunnelKeys
	relay2 *testnet.Relay
	own    *testnet.Relay
}

func newTwoRelays(t *testing.T) *twoRelays {
	t.Helper()
	w := &twoRelays{world: newWorld(t)}
	w.keys2 = testnet.TunnelKeys{Relay: testnet.NewKey(t), Home: w.keys.Home}
	second := w.AddRelay(t)
	w.relay2 = testnet.NewRelay(t, second)
	w.relay2.DropAll(t)
	w.relay2.Secret(t, "wg0.key", w.keys2.Relay.Private)
	w.own = newOwnHome(t, w.world)
	for _, end := range []*testnet.Relay{w.relay, w.relay2, w.own} {
		end.UseBinary(testnet.FastCaddy(t))
	}
	return w
}

// at2 is the second relay's Caddyfile, made of the first one's.
func (w *twoRelays) at2(text string, values ...string) string {
	return strings.NewReplacer(append(values, w.relay.Folder, w.relay2.Folder)...).Replace(text)
}

// TestTwoRelays runs caddyfile-examples/home-two-relays.Caddyfile with two VMs, each
// with transparent.Caddyfile. Either ends while the other is in use, which must not
// be noticed there.
func TestTwoRelays(t *testing.T) {
	w := newTwoRelays(t)
	testnet.Need(t, "curl")
	services.Echo(t, w.Home, "127.0.0.1:22", "127.0.0.1:19132")
	whoIsThere(t, w.Home, "127.0.0.1:8080")
	text := substitute(t, "caddyfile-examples/transparent.Caddyfile", w.paths(nil))
	text2 := w.at2(text, "10.77.0.", "10.78.0.", "fd77::", "fd78::")
	w.relay.Start(t, text)
	w.relay2.Start(t, text2)
	w.own.Start(t, w.ownExample(t, w.own, "home-two-relays.Caddyfile", w.public,
		map[string]string{"SECOND-" + exampleRelayKey: w.keys2.Relay.Public}))
	waitSessions(t, w.relay, w.relay2)
	unprivileged(t, w.relay, w.relay2, w.own)

	both := []string{testnet.RelayIP, testnet.Relay2IP}
	for _, relay := range both {
		page := w.curlAt(t, "/?by"+relay, relay)
		if want := testnet.Domain + " for " + testnet.ClientIP; page != want {
			t.Errorf("through %s home sees %q, want %q", relay, page, want)
		}
		accessLog(t, w.own.Folder, "/?by"+relay, testnet.ClientIP)
		udp := udpClient{dialUDPAt(t, w.Client, relay+":19132"), make(map[string]bool)}
		if err := udp.echo("hello"); err != nil {
			t.Errorf("through %s: %v", relay, err)
		}
	}

	t.Run("the first is stopped", func(t *testing.T) {
		load := w.startLoad(t, testnet.Relay2IP+":2022")
		load.wait(t, 20)
		w.relay.Stop()
		load.wait(t, 20)
		// As a browser does, with both addresses.
		if page := w.curlAt(t, "/", both...); !strings.HasPrefix(page, testnet.Domain) {
			t.Errorf("got %q", page)
		}
		load.stop(t)
	})

	w.relay.Start(t, text)
	testnet.Eventually(t, 20*time.Second, func() error { return echoAt(w.Client, testnet.RelayIP+":2022") })
	t.Run("the second is killed", func(t *testing.T) {
		load := w.startLoad(t, testnet.RelayIP+":2022")
		load.wait(t, 20)
		w.relay2.Kill()
		load.wait(t, 20)
		load.stop(t)
	})

	// Without `transparent` both can be peers of one tunnel: what is bound once is
	// there for both.
	t.Run("one tunnel", func(t *testing.T) {
		ports := w.ports(t)
		w.relay2.Start(t, w.at2(ports, testnet.RelayTunnelIP, "10.77.0.3"))
		if err := w.relay.Load(t, ports); err != nil {
			t.Fatal(err)
		}
		home := replace(t, w.ownExample(t, w.own, "home.Caddyfile", w.private, nil), "		peer relay {", fmt.Sprintf(`		peer second-relay {
			public_key %s
			allowed_ips 10.77.0.3/32
			endpoint %s:51820
			persistent_keepalive 25s
		}
		peer relay {`, w.keys2.Relay.Public, testnet.Endpoint2))
		if err := w.own.Load(t, home); err != nil {
			t.Fatal(err)
		}
		for _, relay := range both {
			testnet.Eventually(t, 20*time.Second, func() error { return echoAt(w.Client, relay+":2022") })
		}
		load := w.startLoad(t, testnet.Relay2IP+":2022")
		load.wait(t, 10)
		w.relay.Kill()
		load.wait(t, 10)
		load.stop(t)
	})
}

// curlAt asks for the domain's site by curl, which is told the domain's addresses.
func (w *world) curlAt(t *testing.T, path string, addresses ...string) string {
	t.Helper()
	return w.Client.Output(t, "curl", "--silent", "--show-error", "--max-time", "30", "--cacert", w.public.File,
		"--resolve", testnet.Domain+":443:"+strings.Join(addresses, ","), "https://"+testnet.Domain+path)
}

// load is the use that a service gets: a connection that stays, which says a line
// every 20 ms, and as often a new connection.
type load struct {
	served atomic.Int64
	cancel context.CancelFunc
	done   chan error
}

func (w *world) startLoad(t *testing.T, address string) *load {
	t.Helper()
	conn, err := w.Client.Dial(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, done: make(chan error, 1)}
	t.Cleanup(cancel)
	go func() {
		defer conn.Close()
		l.done <- l.run(ctx, w.Client, conn, address)
	}()
	return l
}

func (l *load) run(ctx context.Context, client *testnet.Namespace, conn net.Conn, address string) error {
	lines := bufio.NewReader(conn)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := echoLine(conn, lines, fmt.Sprint("line ", n)); err != nil {
			return fmt.Errorf("the connection that stays: %w", err)
		}
		if err := echoAt(client, address); err != nil {
			return fmt.Errorf("new connection %d: %w", n, err)
		}
		l.served.Add(1)
	}
}

// wait waits until so many connections more were served.
func (l *load) wait(t *testing.T, more int64) {
	t.Helper()
	target := l.served.Load() + more
	testnet.Eventually(t, 60*time.Second, func() error {
		select {
		case err := <-l.done:
			t.Fatalf("after %d connections: %v", l.served.Load(), err)
		default:
		}
		if served := l.served.Load(); served < target {
			return fmt.Errorf("%d connections were served, not %d", served, target)
		}
		return nil
	})
}

func (l *load) stop(t *testing.T) {
	t.Helper()
	l.cancel()
	if err := <-l.done; err != nil {
		t.Errorf("after %d connections: %v", l.served.Load(), err)
	}
}
