package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// joined are a relay and a home with `mtu auto`, over a line.
type joined struct {
	relay, home             *Tunnel
	relayClaim, homeClaim   *Claim
	relayConfig, homeConfig *Config
	line                    *line
}

// joinOver brings both ends up over a line that carries inner packets of up to
// size bytes, after change has had its way with the configurations.
func joinOver(t *testing.T, size int, change func(relay, home *Config)) *joined {
	t.Helper()
	j := &joined{relay: New("relay"), home: New("home")}
	j.relayConfig, j.homeConfig = ends(t)
	j.line = newLine(t, j.relayConfig.ListenPort, size)
	for _, config := range []*Config{j.relayConfig, j.homeConfig} {
		config.MTU, config.Stack = 0, StackGvisor
	}
	j.homeConfig.Peers[0].Endpoint = j.line.address.String()
	if change != nil {
		change(j.relayConfig, j.homeConfig)
	}
	j.relayClaim = claim(t, j.relay, j.relayConfig)
	j.homeClaim = claim(t, j.home, j.homeConfig)
	return j
}

// await waits until holds says nil.
func await(t *testing.T, holds func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = holds(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// wantMTU waits for an MTU.
func wantMTU(t *testing.T, tunnel *Tunnel, want int) {
	t.Helper()
	await(t, func() error {
		if got := tunnel.MTU(); got != want {
			return fmt.Errorf("%s has MTU %d, want %d", tunnel.Name(), got, want)
		}
		return nil
	})
}

// wantPath waits until the path to a peer is known as it is. That it carries
// more is never found. Less is found by a machine that was too busy to answer in
// time, and then the path is measured anew.
func wantPath(t *testing.T, tunnel *Tunnel, peer, want int) {
	t.Helper()
	await(t, func() error {
		got := tunnel.Status()[peer].PathMTU
		switch {
		case got > want:
			t.Fatalf("%s found a path of %d, want %d", tunnel.Name(), got, want)
		case got == want:
			return nil
		case got > 0:
			t.Logf("%s found a path of %d, and begins anew", tunnel.Name(), got)
			hasten(tunnel, func(known *path, long time.Time) {
				if known.mtu == got {
					known.mtu, known.retry = 0, long
				}
			})
		}
		return fmt.Errorf("%s found a path of %d, want %d", tunnel.Name(), got, want)
	})
}

// wantPathHere is wantPath once the path has been measured to where the peer is
// now.
func wantPathHere(t *testing.T, tunnel *Tunnel, peer, want int) {
	t.Helper()
	await(t, func() error {
		at := tunnel.Status()[peer].Endpoint
		p := tunnel.live.paths
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, known := range p.peers {
			if known.at == at {
				return nil
			}
		}
		return fmt.Errorf("%s has not measured the path to %s", tunnel.Name(), at)
	})
	wantPath(t, tunnel, peer, want)
}

// hasten makes what is to happen after some time happen now, to one peer.
func hasten(tunnel *Tunnel, change func(known *path, long time.Time)) {
	p := tunnel.live.paths
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, known := range p.peers {
		change(known, time.Now().Add(-time.Hour))
	}
}

// transfer sends bytes through a new connection to an echo at home, no more of
// them at once than the sockets of a line hold: it is to lose what is too large
// and nothing else, however late it gets a CPU.
func transfer(t *testing.T, j *joined, size int) {
	t.Helper()
	conn := dial(t, j.relayClaim, homeAddress, 7)
	defer conn.Close()
	for chunk := make([]byte, 32<<10); size > 0; size -= len(chunk) {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write(chunk); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, chunk); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAutoFindsThePath(t *testing.T) {
	for _, test := range []struct {
		size  int
		stack StackChoice
	}{
		{1500, StackGvisor},
		{1420, StackGvisor},
		{1412, StackGvisor},
		{1400, StackGvisor},
		{1392, StackGvisor},
		{1340, StackGvisor},
		{1333, StackGvisor},
		{1280, StackGvisor},
		{1412, StackAuto}, // the kernel's, where it can be had
	} {
		size := test.size
		t.Run(fmt.Sprint(size, test.stack.name()), func(t *testing.T) {
			t.Parallel()
			j := joinOver(t, size, func(relay, home *Config) { relay.Stack, home.Stack = test.stack, test.stack })
			echoAt(t, j.homeClaim, 7)
			want := min(size, netstack.MaxPing)
			wantPath(t, j.relay, 0, want)
			wantPath(t, j.home, 0, want)
			wantMTU(t, j.relay, roomForPadding(want))
			wantMTU(t, j.home, roomForPadding(want))
			// Every packet of a connection passes now, padding and all.
			await(t, func() error {
				lost := j.line.lost.Load()
				transfer(t, j, 1<<20)
				if lost != j.line.lost.Load() {
					return fmt.Errorf("a connection's packets were too large for the path")
				}
				return nil
			})
		})
	}
}

func TestAutoOneWayAndPadding(t *testing.T) {
	for _, test := range []struct {
		name        string
		up, down    int
		homeMTU     int
		relay, home int // what each finds
	}{
		{"the way home is smaller", 1420, 1392, 0, 1392, 1420},
		{"the way from home is smaller", 1392, 1420, 0, 1420, 1392},
		// Home pads to a multiple of 16 within an MTU of its own, which the
		// relay must leave room for.
		{"home has a number", 1400, 1400, 1420, 1392, 0},
		{"home has a number that fits", 1400, 1400, 1400, 1400, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			j := joinOver(t, 1280, func(relay, home *Config) { home.MTU = test.homeMTU })
			j.line.up.Store(int64(test.up))
			j.line.down.Store(int64(test.down))
			hasten(j.relay, func(known *path, long time.Time) { known.grow = long })
			wantPath(t, j.relay, 0, test.relay)
			wantMTU(t, j.relay, roomForPadding(test.relay))
			if test.home != 0 {
				wantPath(t, j.home, 0, test.home)
				wantMTU(t, j.home, roomForPadding(test.home))
			} else if got := j.home.Status()[0].PathMTU; got != 0 || j.home.MTU() != test.homeMTU {
				t.Errorf("home has MTU %d and a path of %d", j.home.MTU(), got)
			}
		})
	}
}

func TestAutoByIPv6Alone(t *testing.T) {
	j := joinOver(t, 1412, func(relay, home *Config) {
		relay.Addresses, home.Addresses = relay.Addresses[1:], home.Addresses[1:]
		relay.Peers[0].AllowedIPs, home.Peers[0].AllowedIPs = relay.Peers[0].AllowedIPs[1:], home.Peers[0].AllowedIPs[1:]
	})
	wantPath(t, j.relay, 0, 1412)
	wantPath(t, j.home, 0, 1412)
	wantMTU(t, j.relay, 1408)
}

func TestAutoFollowsTheEndpoint(t *testing.T) {
	j := joinOver(t, 1420, nil)
	echoAt(t, j.relayClaim, 7)
	wantPath(t, j.relay, 0, 1420)
	wantMTU(t, j.relay, 1420)
	back := dial(t, j.homeClaim, relayAddress, 7)
	// Sizes that home, which has not noticed and pads its answers, leaves alone.
	for _, size := range []int{1408, 1376, 1420} {
		j.line.move(t, size)
		mustEcho(t, back, "from there") // which is when the relay learns of it
		wantPathHere(t, j.relay, 0, size)
		wantMTU(t, j.relay, size)
	}
}

// A path that carries less than before says nothing of it: handshakes and
// keepalives pass as ever.
func TestAutoSeesABlackHole(t *testing.T) {
	j := joinOver(t, 1420, nil)
	echoAt(t, j.homeClaim, 7)
	for _, tunnel := range []*Tunnel{j.relay, j.home} {
		wantPath(t, tunnel, 0, 1420)
		wantMTU(t, tunnel, 1420)
	}
	j.line.carry(1376)
	long := func(known *path, long time.Time) { known.checked = long }
	hasten(j.relay, long)
	hasten(j.home, long)
	// The connection stalls, and goes on by itself.
	transfer(t, j, 1<<18)
	await(t, func() error {
		hasten(j.home, long)
		transfer(t, j, 1<<16)
		if got := j.home.MTU(); got > 1376 {
			return fmt.Errorf("home has MTU %d", got)
		}
		return nil
	})
	for _, tunnel := range []*Tunnel{j.relay, j.home} {
		wantPath(t, tunnel, 0, 1376)
		wantMTU(t, tunnel, 1376)
	}
}

func TestAutoGrowsAgain(t *testing.T) {
	j := joinOver(t, 1340, nil)
	wantPath(t, j.relay, 0, 1340)
	wantMTU(t, j.relay, 1328)
	j.line.carry(1412)
	await(t, func() error {
		hasten(j.relay, func(known *path, long time.Time) { known.grow = long })
		if got := j.relay.MTU(); got != 1408 {
			return fmt.Errorf("MTU %d, want 1408", got)
		}
		return nil
	})
}

// mute is a peer of the relay's that is up and whose path nobody can measure.
func mute(name string, relay *Config) (peer Peer, config *Config) {
	config = &Config{
		PrivateKey: NewPrivateKey(),
		Addresses:  prefixes("10.77.1.1/24"),
		MTU:        1420,
		Stack:      StackGvisor,
		Peers: []Peer{{
			Name: "relay", PublicKey: relay.PrivateKey.Public(), AllowedIPs: prefixes("10.77.0.1/32"),
			Endpoint:            netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), relay.ListenPort).String(),
			PersistentKeepalive: 25 * time.Second,
		}},
	}
	return Peer{Name: name, PublicKey: config.PrivateKey.Public(), AllowedIPs: prefixes("10.77.1.0/24")}, config
}

func TestAutoIsSafeWithAMutePeer(t *testing.T) {
	for _, test := range []struct {
		name   string
		hosts  []netip.Addr
		reason string
	}{
		{"it has no address of its own", nil, "it has no address of its own to send an echo request to; give the peer a `host`, or set the tunnel's mtu"},
		{"its address does not answer", []netip.Addr{netip.MustParseAddr("10.77.1.9")}, "it answers no echo request (ping) through the tunnel; let its firewall answer them, or set the tunnel's mtu"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			relayConfig, homeConfig := ends(t)
			relayConfig.MTU, relayConfig.Stack, homeConfig.Stack = 0, StackGvisor, StackGvisor
			peer, muteConfig := mute("mute", relayConfig)
			peer.Hosts = test.hosts
			withMute := *relayConfig
			withMute.Peers = append([]Peer{peer}, relayConfig.Peers...)
			relay := New("relay")
			older, logs := observed(t, relay, &withMute)
			claim(t, New("mute"), muteConfig)
			if fields := waitLog(t, logs, "the path to a peer cannot be measured"); fields["peer"] != "mute" || fields["reason"] != test.reason {
				t.Errorf("fields %v", fields)
			}
			claim(t, New("home"), homeConfig)
			wantPath(t, relay, 1, 1420)
			if got := relay.MTU(); got != netstack.MinMTU || relay.Status()[0].PathMTU != 0 {
				t.Errorf("MTU %d with a peer that is up and whose path is not known", got)
			}
			// Without that peer nothing is in the way.
			claim(t, relay, relayConfig)
			if err := older.Release(); err != nil {
				t.Fatal(err)
			}
			wantMTU(t, relay, 1420)
		})
	}
}

// The path to a machine behind a peer without an address of its own is as good.
func TestAutoMeasuresToAHost(t *testing.T) {
	relayConfig, _ := ends(t)
	relayConfig.MTU, relayConfig.Stack = 0, StackGvisor
	peer, config := mute("router", relayConfig)
	peer.Hosts = []netip.Addr{netip.MustParseAddr("10.77.1.1")}
	relayConfig.Peers = []Peer{peer}
	relay := New("relay")
	claim(t, relay, relayConfig)
	claim(t, New("router"), config)
	wantPath(t, relay, 0, 1420)
	wantMTU(t, relay, 1420)
}

func TestAutoTakesTheLeastPath(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relayConfig.MTU, relayConfig.Stack, homeConfig.Stack = 0, StackGvisor, StackGvisor
	office, officeConfig := mute("office", relayConfig)
	office.AllowedIPs = prefixes("10.77.1.1/32")
	narrow := newLine(t, relayConfig.ListenPort, 1392)
	officeConfig.Peers[0].Endpoint = narrow.address.String()
	both := *relayConfig
	both.Peers = append([]Peer{office}, relayConfig.Peers...)

	relay := New("relay")
	older, logs := observed(t, relay, &both)
	claim(t, New("office"), officeConfig)
	claim(t, New("home"), homeConfig)
	wantPath(t, relay, 0, 1392)
	wantPath(t, relay, 1, 1420)
	wantMTU(t, relay, 1392)
	await(t, func() error {
		lines := logs.FilterMessageSnippet("tunnel's MTU changed").All()
		if len(lines) == 0 {
			return errors.New("the log does not say that the MTU has changed")
		}
		if fields := lines[len(lines)-1].ContextMap(); fields["peer"] != "office" || fields["mtu"] != int64(1392) {
			return fmt.Errorf("fields %v", fields)
		}
		return nil
	})

	claim(t, relay, relayConfig)
	if err := older.Release(); err != nil {
		t.Fatal(err)
	}
	wantMTU(t, relay, 1420)
}

func TestNumberSwitchesProbingOff(t *testing.T) {
	j := joinOver(t, 1500, func(relay, home *Config) { relay.MTU, home.MTU = 1300, 1300 })
	echoAt(t, j.homeClaim, 7)
	transfer(t, j, 1<<20)
	// Not all of a busy machine's segments are full ones.
	if got := j.line.largest.Load(); got < netstack.MinMTU || got > 1300 {
		t.Errorf("the largest packet had %d bytes, want 1300 or little less", got)
	}
	if got := j.relay.MTU(); got != 1300 || j.relay.Status()[0].PathMTU != 0 {
		t.Errorf("MTU %d, path %d", got, j.relay.Status()[0].PathMTU)
	}

	t.Run("a reload to auto and back", func(t *testing.T) {
		older := j.relayClaim
		for _, mtu := range []int{0, 1310, 0} {
			former := j.relay.MTU()
			next := *j.relayConfig
			next.MTU = mtu
			younger := claim(t, j.relay, &next)
			if got := j.relay.MTU(); got != former {
				t.Errorf("MTU %d while both are in force, want %d", got, former)
			}
			if err := older.Release(); err != nil {
				t.Fatal(err)
			}
			older = younger
			if mtu == 0 {
				mtu = 1420
				wantPath(t, j.relay, 0, mtu)
			}
			wantMTU(t, j.relay, mtu)
		}
	})
}

// sizedDevice is a device that is read packets of given sizes from.
type sizedDevice struct {
	tun.Device
	sizes []int
	fill  func(buf []byte) // if any
}

func (d *sizedDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, size := range d.sizes {
		for j := range bufs[i] {
			bufs[i][j] = 0xff
		}
		if d.fill != nil {
			d.fill(bufs[i])
		}
		sizes[i] = size
	}
	return len(d.sizes), nil
}

func TestPadding(t *testing.T) {
	const offset = 16
	for _, test := range []struct{ mtu, size, want int }{
		{1400, 1, 16},
		{1400, 40, 48},
		{1400, 48, 48},
		{1400, 1391, 1392},
		{1400, 1393, 1400},
		{1400, 1400, 1400},
		{1400, 1401, 1401},
		{1400, 1420, 1420},
		{1280, 1412, 1412},
		{1420, 1412, 1420},
		{1420, 0, 0},
	} {
		d := newPaddedDevice(&sizedDevice{sizes: []int{test.size, 32}}, test.mtu)
		bufs, sizes := [][]byte{make([]byte, 1500), make([]byte, 1500)}, make([]int, 2)
		if n, err := d.Read(bufs, sizes, offset); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		if sizes[0] != test.want || sizes[1] != 32 {
			t.Errorf("MTU %d: %d bytes became %d, want %d", test.mtu, test.size, sizes[0], test.want)
		}
		for i, b := range bufs[0][offset : offset+sizes[0]] {
			if want := byte(0); i < test.size {
				want = 0xff
				if b != want {
					t.Fatalf("MTU %d, %d bytes: byte %d was changed", test.mtu, test.size, i)
				}
			} else if b != want {
				t.Errorf("MTU %d, %d bytes: padding byte %d is %d", test.mtu, test.size, i, b)
			}
		}
	}
	// A probe leaves as it is; the answer to one is padded.
	for _, test := range []struct {
		name       string
		version    byte
		at         int
		next, kind byte
		headers    int
		size, want int
	}{
		{"IPv4 request", 0x45, protocolAt, icmpProtocol, 8, 20, 1361, 1361},
		{"IPv4 reply", 0x45, protocolAt, icmpProtocol, 0, 20, 1361, 1376},
		{"IPv4 TCP", 0x45, protocolAt, 6, 8, 20, 1361, 1376},
		{"IPv6 request", 0x60, nextHeaderAt, icmpv6Protocol, 128, 40, 1361, 1361},
		{"IPv6 reply", 0x60, nextHeaderAt, icmpv6Protocol, 129, 40, 1361, 1376},
		{"a person's ping", 0x45, protocolAt, icmpProtocol, 8, 20, 84, 96},
	} {
		packet := make([]byte, offset+1500)
		inner := &sizedDevice{sizes: []int{test.size}, fill: func(b []byte) {
			b[offset], b[offset+test.at], b[offset+test.headers] = test.version, test.next, test.kind
		}}
		sizes := make([]int, 1)
		if _, err := newPaddedDevice(inner, 1420).Read([][]byte{packet}, sizes, offset); err != nil || sizes[0] != test.want {
			t.Errorf("%s of %d bytes became %d (%v), want %d", test.name, test.size, sizes[0], err, test.want)
		}
	}
	// No room at the end of the buffer.
	d := newPaddedDevice(&sizedDevice{sizes: []int{90}}, 1400)
	sizes := make([]int, 1)
	if _, err := d.Read([][]byte{make([]byte, offset+92)}, sizes, offset); err != nil || sizes[0] != 92 {
		t.Errorf("size %d, %v", sizes[0], err)
	}
}

// countedDevice is a device whose reads cost nothing.
type countedDevice struct {
	tun.Device
	n int
}

func (d *countedDevice) Read([][]byte, []int, int) (int, error) { return d.n, nil }

// BenchmarkPadding measures what padding adds to the reading of a batch of 128
// packets.
func BenchmarkPadding(b *testing.B) {
	const batch, offset = 128, 16
	for _, size := range []int{1420, 1400, 52} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			d := newPaddedDevice(&countedDevice{n: batch}, 1420)
			bufs, sizes := make([][]byte, batch), make([]int, batch)
			for i := range bufs {
				bufs[i] = make([]byte, 1<<11)
			}
			b.ReportAllocs()
			for b.Loop() {
				for i := range sizes {
					sizes[i] = size
				}
				d.Read(bufs, sizes, offset)
			}
		})
	}
}
