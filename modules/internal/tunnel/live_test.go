package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestMain(m *testing.M) { testnet.MainWithoutLeaks(m) }

// patience is how long a test waits for what must happen. It is long because
// the machine may be busy; nothing waits for it to pass.
const patience = 2 * time.Minute

var (
	relayAddress = netip.MustParseAddr("10.77.0.1")
	homeAddress  = netip.MustParseAddr("10.77.0.2")
)

// ends are two configurations that fit each other: home calls the relay.
func ends(t testing.TB) (relay, home *Config) {
	t.Helper()
	relay = &Config{
		PrivateKey: NewPrivateKey(),
		Addresses:  prefixes("10.77.0.1/24", "fd77::1/64"),
		ListenPort: freePort(t),
		MTU:        1280,
	}
	home = &Config{
		PrivateKey: NewPrivateKey(),
		Addresses:  prefixes("10.77.0.2/24", "fd77::2/64"),
		MTU:        1280,
		Peers: []Peer{{
			Name:                "relay",
			PublicKey:           relay.PrivateKey.Public(),
			AllowedIPs:          prefixes("10.77.0.1/32", "fd77::1/128"),
			Endpoint:            netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), relay.ListenPort).String(),
			PersistentKeepalive: 25 * time.Second,
		}},
	}
	relay.Peers = []Peer{{Name: "home", PublicKey: home.PrivateKey.Public(), AllowedIPs: prefixes("10.77.0.2/32", "fd77::2/128")}}
	return relay, home
}

// freePort is a UDP port that nobody has.
func freePort(t testing.TB) uint16 { return uint16(testnet.FreePort(t, "udp")) }

// claim prepares a claim and releases it at the end of the test.
func claim(t *testing.T, tunnel *Tunnel, config *Config) *Claim {
	t.Helper()
	c := tunnel.Claim(config, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
	t.Cleanup(func() { c.Release() })
	if err := c.Prepare(); err != nil {
		t.Fatal(err)
	}
	return c
}

// echoAt answers every TCP connection to port with what it sends.
func echoAt(t *testing.T, c *Claim, port uint16) {
	t.Helper()
	listener, err := c.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(conn, conn)
				conn.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
}

func dial(t *testing.T, c *Claim, address netip.Addr, port uint16) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := c.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(address, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func mustEcho(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte(text)) {
		t.Fatalf("got %q, want %q", got, text)
	}
}

func TestTunnelCarriesConnections(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay, home := New("relay"), New("home")
	r, h := claim(t, relay, relayConfig), claim(t, home, homeConfig)
	echoAt(t, h, 7)
	mustEcho(t, dial(t, r, homeAddress, 7), "by IPv4")
	mustEcho(t, dial(t, r, netip.MustParseAddr("fd77::2"), 7), "by IPv6")

	status := relay.Status()
	if len(status) != 1 || status[0].Name != "home" || status[0].LastHandshake.IsZero() || !status[0].Endpoint.IsValid() || status[0].Received == 0 {
		t.Errorf("status %+v", status)
	}
}

func TestNothingIsOpenBeforePrepare(t *testing.T) {
	relayConfig, _ := ends(t)
	c := New("relay").Claim(relayConfig, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
	defer c.Release()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(relayConfig.ListenPort)})
	if err != nil {
		t.Fatalf("the port is taken: %v", err)
	}
	conn.Close()
}

func TestBusyPort(t *testing.T) {
	relayConfig, _ := ends(t)
	taken, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(relayConfig.ListenPort)})
	if err != nil {
		t.Fatal(err)
	}
	tunnel := New("relay")
	c := tunnel.Claim(relayConfig, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
	defer c.Release()
	err = c.Prepare()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "another program has this port") {
		t.Fatalf("got %v", err)
	}
	taken.Close()
	if err := c.Prepare(); err != nil {
		t.Fatalf("once the port is free: %v", err)
	}
}

func TestReloadKeepsWhatStays(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := New("relay")
	r := claim(t, relay, relayConfig)
	echoAt(t, claim(t, New("home"), homeConfig), 7)
	conn := dial(t, r, homeAddress, 7)
	mustEcho(t, conn, "before")
	handshake := relay.Status()[0].LastHandshake

	next := *relayConfig
	next.Addresses = append(prefixes("10.99.0.1/24"), relayConfig.Addresses...)
	next.Peers = append([]Peer{{Name: "office", PublicKey: key(9), AllowedIPs: prefixes("10.77.0.9/32")}}, relayConfig.Peers...)
	younger := claim(t, relay, &next)
	mustEcho(t, conn, "while both are in force")
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	mustEcho(t, conn, "after")
	if got := relay.Status(); len(got) != 2 || got[1].Name != "home" || !got[1].LastHandshake.Equal(handshake) {
		t.Errorf("the session was not kept: %+v, handshake before %s", got, handshake)
	}
	mustEcho(t, dial(t, younger, homeAddress, 7), "a new connection")
}

func TestPortSwitchKeepsConnections(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := New("relay")
	r := claim(t, relay, relayConfig)
	echoAt(t, claim(t, New("home"), homeConfig), 7)
	conn := dial(t, r, homeAddress, 7)
	mustEcho(t, conn, "before")

	next := *relayConfig
	next.ListenPort = freePort(t)
	claim(t, relay, &next)
	if got := relay.ListenPort(); got != relayConfig.ListenPort {
		t.Errorf("the port was switched before the older claim was released: %d", got)
	}
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	if got := relay.ListenPort(); got != next.ListenPort {
		t.Errorf("port %d, want %d", got, next.ListenPort)
	}
	// The relay speaks first from the new port, and home follows it there.
	mustEcho(t, conn, "after")
	old, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(relayConfig.ListenPort)})
	if err != nil {
		t.Fatalf("the old port is still taken: %v", err)
	}
	old.Close()
}

func TestFailedReloadChangesNothing(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := New("relay")
	r := claim(t, relay, relayConfig)
	echoAt(t, claim(t, New("home"), homeConfig), 7)
	conn := dial(t, r, homeAddress, 7)
	mustEcho(t, conn, "before")

	t.Run("the new port is busy", func(t *testing.T) {
		taken, err := net.ListenUDP("udp", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		next := *relayConfig
		next.ListenPort = uint16(taken.LocalAddr().(*net.UDPAddr).Port)
		c := relay.Claim(&next, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
		if err := c.Prepare(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("got %v", err)
		}
		if err := c.Release(); err != nil {
			t.Error(err)
		}
	})
	t.Run("another app fails after ours", func(t *testing.T) {
		next := *relayConfig
		next.PrivateKey = NewPrivateKey()
		next.ListenPort = freePort(t)
		next.Addresses = prefixes("10.99.0.1/24")
		next.Peers = []Peer{{Name: "office", PublicKey: key(9), AllowedIPs: prefixes("10.77.0.2/32")}}
		c := relay.Claim(&next, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
		if err := c.Prepare(); err != nil {
			t.Fatal(err)
		}
		mustEcho(t, conn, "while it is prepared")
		if err := c.Release(); err != nil {
			t.Error(err)
		}
		free, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(next.ListenPort)})
		if err != nil {
			t.Fatalf("the prepared port is still taken: %v", err)
		}
		free.Close()
	})
	mustEcho(t, conn, "after")
	mustEcho(t, dial(t, r, homeAddress, 7), "a new connection")
	if got := relay.Status(); len(got) != 1 || got[0].Name != "home" {
		t.Errorf("status %+v", got)
	}
}

func TestTunnelGoesDownWithItsLastClaim(t *testing.T) {
	relayConfig, _ := ends(t)
	relay := New("relay")
	c := claim(t, relay, relayConfig)
	if err := c.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DialTCP(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(homeAddress, 7)); !errors.Is(err, ErrDown) {
		t.Errorf("got %v", err)
	}
	again := claim(t, relay, relayConfig)
	if relay.ListenPort() != relayConfig.ListenPort {
		t.Error("it does not come up again")
	}
	again.Release()
	if err := relay.Destruct(); err != nil {
		t.Error(err)
	}
}

func TestDialErrorsSayWhatToDo(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	r := claim(t, New("relay"), relayConfig)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := r.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(homeAddress, 7))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "peer home has not called since the tunnel came up") {
		t.Errorf("home away: %v", err)
	}

	claim(t, New("home"), homeConfig)
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = r.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(homeAddress, 7))
	if !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "10.77.0.2:7 refused the connection") {
		t.Errorf("nothing listens: %v", err)
	}
}

func TestEndpointByName(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	_, port, _ := net.SplitHostPort(homeConfig.Peers[0].Endpoint)
	homeConfig.Peers[0].Endpoint = net.JoinHostPort("localhost", port)
	r := claim(t, New("relay"), relayConfig)
	h := claim(t, New("home"), homeConfig)
	echoAt(t, r, 7)
	mustEcho(t, dial(t, h, relayAddress, 7), "resolved")
}

// Who is connected through a tunnel that goes down is told.
func TestDownResetsConnections(t *testing.T) {
	for _, stack := range []StackChoice{StackKernel, StackGvisor} {
		t.Run(string(stack), func(t *testing.T) {
			// A tunnel waits for its resets to leave, but not for long: a busy
			// machine may miss it once or twice.
			var err error
			for range 5 {
				if err = readAtDown(t, stack); errors.Is(err, syscall.ECONNRESET) {
					return
				}
			}
			t.Errorf("home's end reads %v, want a reset", err)
		})
	}
}

// readAtDown is what home's end of a connection reads when the relay's tunnel
// has gone down.
func readAtDown(t *testing.T, stack StackChoice) error {
	t.Helper()
	relayConfig, homeConfig := ends(t)
	relayConfig.Stack, homeConfig.Stack = stack, stack
	r, h := claim(t, New("relay"), relayConfig), claim(t, New("home"), homeConfig)
	defer h.Release()
	listener, err := h.ListenTCP(netip.AddrPortFrom(homeAddress, 7))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			accepted <- conn
		}
	}()
	dial(t, r, homeAddress, 7)
	conn := <-accepted
	defer conn.Close()
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

// While a name is looked up, the other peers are looked after.
func TestSlowResolverHoldsNobodyUp(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relayConfig.Peers = append(relayConfig.Peers, Peer{Name: "slow", PublicKey: key(9), AllowedIPs: prefixes("10.77.0.9/32"), Endpoint: "slow.example.net:51820"})
	var asked atomic.Pointer[time.Time] // since when somebody waits for the resolver; nil if nobody does
	former := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		now := time.Now()
		asked.Store(&now)
		defer asked.Store(nil)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	tunnel := New("relay")
	r := tunnel.Claim(relayConfig, zap.NewNop())
	defer func() {
		r.Release() // after which nobody asks
		net.DefaultResolver = former
	}()
	if err := r.Prepare(); err != nil {
		t.Fatal(err)
	}
	h := claim(t, New("home"), homeConfig)
	echoAt(t, h, 7)
	conn := dial(t, r, homeAddress, 7)
	// A resolver that does not answer is asked again and again, and a busy machine
	// may take longer than one question does.
	await(t, func() error {
		mustEcho(t, conn, "heard")
		since := asked.Load()
		status := tunnel.Status()[0]
		if since == nil || asked.Load() != since || !status.LastReceived.After(status.LastHandshake) || !status.LastReceived.After(*since) {
			return errors.New("nothing is noted while the resolver is asked")
		}
		return nil
	})
}

// A peer that is taken out of the configuration has no connection any more, and
// neither has an address that it has lost. All others go on.
func TestRemovedPeerIsRevoked(t *testing.T) {
	for _, stack := range []StackChoice{StackKernel, StackGvisor} {
		t.Run(string(stack), func(t *testing.T) {
			relayConfig, homeConfig := ends(t)
			relayConfig.Stack, homeConfig.Stack = stack, stack
			_, officeConfig := ends(t)
			officeConfig.Peers[0].PublicKey, officeConfig.Peers[0].Endpoint = homeConfig.Peers[0].PublicKey, homeConfig.Peers[0].Endpoint
			officeConfig.Addresses, officeConfig.Stack = prefixes("10.77.0.3/24", "10.77.0.4/24"), stack
			office := Peer{Name: "office", PublicKey: officeConfig.PrivateKey.Public(), AllowedIPs: prefixes("10.77.0.3/32", "10.77.0.4/32")}
			relayConfig.Peers = append(relayConfig.Peers, office)

			relay := New("relay")
			r := claim(t, relay, relayConfig)
			echoAt(t, claim(t, New("home"), homeConfig), 7)
			echoAt(t, claim(t, New("office"), officeConfig), 7)
			conns := make(map[string]net.Conn)
			for _, address := range []string{"10.77.0.2", "fd77::2", "10.77.0.3", "10.77.0.4"} {
				conns[address] = dial(t, r, netip.MustParseAddr(address), 7)
				mustEcho(t, conns[address], "before")
			}
			flow, err := r.DialUDP(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(homeAddress, 9))
			if err != nil {
				t.Fatal(err)
			}
			defer flow.Close()

			next := *relayConfig
			office.AllowedIPs = office.AllowedIPs[:1]
			next.Peers = []Peer{office}
			younger := relay.Claim(&next, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
			t.Cleanup(func() { younger.Release() })
			if err := younger.Prepare(); err != nil {
				t.Fatal(err)
			}
			for _, conn := range conns {
				mustEcho(t, conn, "while both are in force")
			}
			if err := r.Release(); err != nil {
				t.Fatal(err)
			}
			for address, conn := range conns {
				if address == "10.77.0.3" {
					mustEcho(t, conn, "after")
					continue
				}
				conn.SetReadDeadline(time.Now().Add(patience))
				if _, err := conn.Read(make([]byte, 1)); !Revoked(err) {
					t.Errorf("reading from %s: %v, want that it was revoked", address, err)
				}
			}
			flow.SetReadDeadline(time.Now().Add(patience))
			if _, err := flow.Read(make([]byte, 1)); !Revoked(err) {
				t.Errorf("reading a datagram: %v, want that it was revoked", err)
			}
		})
	}
}

// A connection from an address that this end has no more is told so, and does
// not wait for answers that cannot come. All others go on.
func TestRemovedAddressIsRevoked(t *testing.T) {
	for _, stack := range []StackChoice{StackKernel, StackGvisor} {
		t.Run(string(stack), func(t *testing.T) {
			relayConfig, homeConfig := ends(t)
			relayConfig.Stack, homeConfig.Stack = stack, stack
			relayConfig.Addresses = append(relayConfig.Addresses, prefixes("10.99.0.1/24")...)
			homeConfig.Peers[0].AllowedIPs = append(homeConfig.Peers[0].AllowedIPs, prefixes("10.99.0.1/32")...)
			relay := New("relay")
			r := claim(t, relay, relayConfig)
			h := claim(t, New("home"), homeConfig)
			listener, err := h.ListenTCP(netip.AddrPortFrom(homeAddress, 7))
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			connect := func(local string) (near, far net.Conn) {
				t.Helper()
				near, err := r.DialTCP(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(local), 0), netip.AddrPortFrom(homeAddress, 7))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { near.Close() })
				if far, err = listener.Accept(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { far.Close() })
				for _, conn := range []net.Conn{near, far} {
					conn.SetDeadline(time.Now().Add(30 * time.Second))
				}
				return near, far
			}
			keptNear, keptFar := connect("10.77.0.1")
			lostNear, lostFar := connect("10.99.0.1")
			flow, err := r.DialUDP(t.Context(), netip.MustParseAddrPort("10.99.0.1:0"), netip.AddrPortFrom(homeAddress, 9))
			if err != nil {
				t.Fatal(err)
			}
			defer flow.Close()

			next := *relayConfig
			// Another prefix length is no other address.
			next.Addresses = prefixes("10.77.0.1/16", "fd77::1/64")
			younger := relay.Claim(&next, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
			t.Cleanup(func() { younger.Release() })
			if err := younger.Prepare(); err != nil {
				t.Fatal(err)
			}
			if _, err := lostNear.Write([]byte("still")); err != nil {
				t.Fatalf("while both are in force: %v", err)
			}
			if _, err := io.ReadFull(lostFar, make([]byte, 5)); err != nil {
				t.Fatalf("while both are in force: %v", err)
			}
			if err := r.Release(); err != nil {
				t.Fatal(err)
			}
			flow.SetReadDeadline(time.Now().Add(30 * time.Second))
			for name, conn := range map[string]net.Conn{"the connection": lostNear, "the datagrams": flow} {
				if _, err := conn.Read(make([]byte, 1)); !Revoked(err) {
					t.Errorf("reading %s: %v, want that it was revoked", name, err)
				}
			}
			if _, err := lostFar.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("home reads %v, want a reset", err)
			}
			if _, err := keptNear.Write([]byte("after")); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(keptFar, make([]byte, 5)); err != nil {
				t.Error(err)
			}
		})
	}
}
