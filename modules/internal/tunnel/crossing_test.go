package tunnel

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.zx2c4.com/wireguard/device"
)

// The relay makes an initiation for a peer without an endpoint at the one
// moment where that spoils its response to the peer's. It calls home at once,
// which need not call a second time: that would be only after 5 s.
func TestCrossingHandshakes(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay, home := New("relay"), New("home")

	var once sync.Once
	anew := make(chan struct{})
	crossing := details(func(detail string) {
		if !strings.Contains(detail, "Received handshake initiation") {
			return
		}
		once.Do(func() {
			// Made and not sent: with no endpoint, sending fails.
			key := device.NoisePublicKey(relayConfig.Peers[0].PublicKey)
			relay.mu.Lock()
			dev := relay.live.device
			relay.mu.Unlock()
			if _, err := dev.CreateMessageInitiation(dev.LookupPeer(key)); err != nil {
				t.Error(err)
			}
		})
	})
	relayLog := zap.New(zapcore.NewTee(crossing, callsAnew(sync.OnceFunc(func() { close(anew) }))))

	relayClaim := relay.Claim(relayConfig, relayLog)
	t.Cleanup(func() { relayClaim.Release() })
	if err := relayClaim.Prepare(); err != nil {
		t.Fatal(err)
	}
	homeClaim := claim(t, home, homeConfig)
	echoAt(t, homeClaim, 7)
	mustEcho(t, dial(t, relayClaim, homeAddress, 7), "hello")

	once.Do(func() { t.Error("the handshakes did not cross") })
	select {
	case <-anew:
	default:
		t.Error("data has passed by itself, after a stall")
	}
}

// Both ends call at the same moment, and both answer. One of ours calls again,
// and nobody waits for the 5 s after which stock ends do.
func TestCrossingCalls(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pair  [2]string
		order int // of the public keys
	}{
		{"ours and stock, ours leads", [2]string{"ours", "stock"}, -1},
		{"ours and stock, ours follows", [2]string{"ours", "stock"}, 1},
		{"ours and ours", [2]string{"ours", "ours"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			configs, w := wiredConfigs(t, true)
			if keyOrder(configs) != tt.order {
				configs[0].PrivateKey, configs[1].PrivateKey = configs[1].PrivateKey, configs[0].PrivateKey
				configs[0].Peers[0].PublicKey, configs[1].Peers[0].PublicKey = configs[1].Peers[0].PublicKey, configs[0].Peers[0].PublicKey
			}
			w.route = new(cross).route
			w.start()
			anew := make(chan struct{})
			log := zap.New(callsAnew(sync.OnceFunc(func() { close(anew) })))
			var ends [2]*end
			for i, kind := range tt.pair {
				if kind == "stock" {
					ends[i] = stockEnd(t, configs[i])
				} else {
					ends[i] = ourEnd(t, configs[i], log)
				}
			}
			mustPassBothWays(t, ends)
			select {
			case <-anew:
			default:
				t.Error("data has passed by itself, after a stall")
			}
		})
	}
}

func keyOrder(configs [2]*Config) int {
	a, b := configs[0].PrivateKey.Public(), configs[1].PrivateKey.Public()
	return bytes.Compare(a[:], b[:])
}

// mustPassBothWays makes both ends speak at the same time, once.
func mustPassBothWays(t *testing.T, ends [2]*end) {
	t.Helper()
	sockets, others := wiredSockets(t, ends)
	for i, socket := range sockets {
		if _, err := socket.WriteTo([]byte("x"), others[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, socket := range sockets {
		socket.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, _, err := socket.ReadFrom(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
	}
}

// cross routes a wire so that the first calls of both ends cross, and then their
// answers.
type cross struct {
	mu      sync.Mutex
	waiting [device.MessageTransportType + 1][2]func() // by type of message
	crossed [device.MessageTransportType + 1]bool      // likewise
}

func (x *cross) route(from int, datagram []byte, deliver func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	kind := datagram[0]
	if kind != device.MessageInitiationType && kind != device.MessageResponseType || x.crossed[kind] {
		deliver()
		return
	}
	both := &x.waiting[kind]
	if both[from] == nil { // else it is a copy
		both[from] = deliver
	}
	if both[0] != nil && both[1] != nil {
		x.crossed[kind] = true
		both[0]()
		both[1]()
	}
}

// Of two ends, one leads, and the other waits until it must have heard from that
// one.
func TestUncrossAfter(t *testing.T) {
	const roundTrip = 100 * time.Millisecond
	leader, follower := key(1), key(2)
	leads, follows := uncrossAfter(leader, follower, roundTrip), uncrossAfter(follower, leader, roundTrip)
	// A peer takes no second call before that.
	if leads <= device.HandshakeInitationRate {
		t.Errorf("the leader waits for %v", leads)
	}
	if follows <= leads+roundTrip {
		t.Errorf("the follower waits for %v, the leader for %v", follows, leads)
	}
}

// wireguard-go may mix up two handshakes of which it reads messages at the same
// moment. It says so, and this end calls again.
func TestMixedUpHandshakes(t *testing.T) {
	configs, w := wiredConfigs(t, true)
	w.start()
	var relay *end
	ready, anew := make(chan struct{}), make(chan struct{})
	var once sync.Once
	log := zap.New(zapcore.NewTee(
		details(func(detail string) {
			if strings.Contains(detail, "Received handshake response") {
				<-ready
				// What wireguard-go is about to do, as another worker of its own
				// would.
				once.Do(func() { relay.peer.BeginSymmetricSession() })
			}
		}),
		callsAnew(sync.OnceFunc(func() { close(anew) }))))
	relay = ourEnd(t, configs[0], log)
	close(ready)
	home := stockEnd(t, configs[1])
	relay.peer.SendHandshakeInitiation(false)
	select {
	case <-anew:
	case <-time.After(30 * time.Second):
		t.Fatal("it has not called again")
	}
	mustPassBothWays(t, [2]*end{relay, home})
}

// An end whose own call is on its way to a peer that it cannot answer waits for
// the answer.
func TestCallUnderWayIsLeftAlone(t *testing.T) {
	configs, w := wiredConfigs(t, true)
	w.route = func(int, []byte, func()) {}
	w.start()
	tunnel := New("ours")
	c := claim(t, tunnel, configs[0])
	l, endpoint := tunnel.live, netip.MustParseAddrPort(w.address(0))
	peer := l.peer(l.status()[0].PublicKey)

	peer.SendHandshakeInitiation(false)
	first := l.bind.Called(endpoint)
	if first.IsZero() {
		t.Fatal("not called")
	}
	await(t, func() error {
		if time.Since(first) < 2*crossingPause {
			return errors.New("it has just been called, and is left alone for that")
		}
		return nil
	})
	l.recall(peer, false)
	if again := l.bind.Called(endpoint); again != first && time.Since(first) < rekeyTimeout {
		t.Error("it has called again")
	}

	// But where nothing can come of that, it calls again, once.
	l.recall(peer, true)
	second := l.bind.Called(endpoint)
	if second == first {
		t.Fatal("it has not called again")
	}
	l.recall(peer, true)
	if third := l.bind.Called(endpoint); third != second && third.Sub(second) < crossingPause {
		t.Errorf("it has called again after %v: the peer would take that for a replay", third.Sub(second))
	}

	// Nor does it call when it is down.
	status := l.status()[0]
	if err := c.Release(); err != nil {
		t.Fatal(err)
	}
	l.callAnew(status)
}

// callsAnew is a zap core that tells when an end calls again, because of both
// ends' calls.
type callsAnew func()

func (callsAnew) Enabled(zapcore.Level) bool          { return true }
func (c callsAnew) With([]zapcore.Field) zapcore.Core { return c }
func (callsAnew) Sync() error                         { return nil }
func (c callsAnew) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return checked.AddCore(entry, c)
}

func (c callsAnew) Write(entry zapcore.Entry, _ []zapcore.Field) error {
	if strings.Contains(entry.Message, "beginning anew") {
		c()
	}
	return nil
}

// details is a zap core that shows each of wireguard-go's messages to a
// function while wireguard-go waits.
type details func(detail string)

func (details) Enabled(zapcore.Level) bool          { return true }
func (d details) With([]zapcore.Field) zapcore.Core { return d }
func (details) Sync() error                         { return nil }
func (d details) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return checked.AddCore(entry, d)
}

func (d details) Write(_ zapcore.Entry, fields []zapcore.Field) error {
	for _, field := range fields {
		if field.Key == "detail" {
			d(field.String)
		}
	}
	return nil
}
