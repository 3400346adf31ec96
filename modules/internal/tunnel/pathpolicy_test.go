package tunnel

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

var officeAddress = netip.MustParseAddr("10.77.0.3")

// timeline is what the keeper would see of some peers, second by second, in a
// bubble of synctest.
type timeline struct {
	paths  *paths
	logs   *observer.ObservedLogs
	refuse int // an MTU that the stack does not take
	peers  []*timedPeer
}

// timedPeer is one peer of a timeline. Its handshakes come every two minutes
// while it is up.
type timedPeer struct {
	config    Peer
	model     *model
	up        bool
	traffic   uint64 // bytes in a second
	endpoint  netip.AddrPort
	handshake time.Time
	received  uint64
}

func newTimeline(t *testing.T, peers ...*timedPeer) *timeline {
	core, logs := observer.New(zap.InfoLevel)
	line := &timeline{logs: logs, peers: peers}
	ping := func(ctx context.Context, remote netip.Addr, size int) error {
		for _, peer := range line.peers {
			if peer.config.AllowedIPs[0].Addr() == remote {
				return peer.model.ping(ctx, remote, size)
			}
		}
		<-ctx.Done()
		return ctx.Err()
	}
	setMTU := func(mtu int) error {
		if mtu == line.refuse {
			return errors.New("no")
		}
		return nil
	}
	line.paths = newPaths(new(Config), ping, setMTU, func() *zap.Logger { return zap.New(core) })
	t.Cleanup(line.paths.close)
	return line
}

// timed is a peer that is up and whose path carries packets of a size; 0 is one
// that answers nothing.
func timed(n byte, name string, address netip.Addr, carries int) *timedPeer {
	peer := &timedPeer{
		config:   Peer{Name: name, PublicKey: key(n), AllowedIPs: []netip.Prefix{netip.PrefixFrom(address, 32)}},
		model:    newModel(carries),
		up:       true,
		endpoint: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(n)),
	}
	peer.model.answers = []netip.Addr{address}
	return peer
}

// run lets time pass.
func (l *timeline) run(long time.Duration) {
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(time.Second) {
		var peers []Peer
		status := make(map[PublicKey]PeerStatus)
		for _, peer := range l.peers {
			if peer.up && time.Since(peer.handshake) >= 2*time.Minute {
				peer.handshake = time.Now()
			}
			peer.received += peer.traffic
			peers = append(peers, peer.config)
			status[peer.config.PublicKey] = PeerStatus{Endpoint: peer.endpoint, LastHandshake: peer.handshake, Received: peer.received}
		}
		l.paths.look(peers, status)
		synctest.Wait()
	}
}

func (l *timeline) want(t *testing.T, when string, want int) {
	t.Helper()
	if got := l.paths.inForce(); got != want {
		t.Errorf("%s: MTU %d, want %d", when, got, want)
	}
}

func TestMTUFollowsItsPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home, office := timed(1, "home", homeAddress, 1420), timed(2, "office", officeAddress, 1392)
		office.up = false
		line := newTimeline(t, home, office)
		line.run(5 * time.Second)
		line.want(t, "one peer is up", 1420)
		office.up = true
		line.run(5 * time.Second)
		line.want(t, "the other came", 1392)
		office.up = false
		line.run(pathMemory - 10*time.Second)
		line.want(t, "it may come back", 1392)
		line.run(20 * time.Second)
		line.want(t, "it stays away", 1420)
		home.up = false
		line.run(pathMemory + 3*time.Minute)
		line.want(t, "nobody is left", 1280)
	})
}

func TestMTUWithMutePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home, office := timed(1, "home", homeAddress, 1420), timed(2, "office", officeAddress, 0)
		line := newTimeline(t, home, office)
		line.run(20 * time.Minute)
		line.want(t, "a peer is mute", 1280)
		if lines := line.logs.FilterMessageSnippet("cannot be measured").Len(); lines != 1 {
			t.Errorf("%d lines about it, want one", lines)
		}
		if most := 3 * 8; office.model.sent > most {
			t.Errorf("it was asked %d times in 20 minutes, want at most %d", office.model.sent, most)
		}
		office.up = false
		line.run(sessionMax + time.Second)
		line.want(t, "it has gone", 1420)
		office.up = true
		line.run(2 * time.Second)
		line.want(t, "it is back", 1280)
		office.model.carries = 1400
		line.run(growInterval)
		line.want(t, "it has begun to answer", 1392)
	})
}

// A path that comes to carry less is found out while it is in use, and costs
// next to nothing while it is not.
func TestMTUWhenThePathShrinks(t *testing.T) {
	for _, test := range []struct {
		name    string
		traffic uint64
		within  time.Duration
	}{
		{"in use", 10 << 10, checkInterval + 10*time.Second},
		{"not in use", 10, 2*time.Minute + 10*time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				home := timed(1, "home", homeAddress, 1420)
				home.traffic = test.traffic
				line := newTimeline(t, home)
				line.run(time.Minute)
				line.want(t, "at first", 1420)
				home.model.carries = 1380
				line.run(test.within)
				line.want(t, "afterwards", 1376)
			})
		})
	}
}

func TestMTUWhenThePathGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := timed(1, "home", homeAddress, 1400)
		line := newTimeline(t, home)
		line.run(time.Minute)
		line.want(t, "at first", 1392)
		before := home.model.sent
		line.run(time.Hour)
		if sent := home.model.sent - before; sent > 100 {
			t.Errorf("%d requests in an idle hour", sent)
		}
		home.model.carries = 1500
		line.run(growInterval + 10*time.Second)
		line.want(t, "afterwards", 1420)
	})
}

func TestMTUWhenTheEndpointChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := timed(1, "home", homeAddress, 1400)
		line := newTimeline(t, home)
		line.run(time.Minute)
		for _, size := range []int{1340, 1412, 1411, 1420} {
			home.endpoint = netip.AddrPortFrom(home.endpoint.Addr(), home.endpoint.Port()+1)
			home.model.carries = size
			line.run(10 * time.Second)
			line.want(t, "the endpoint changed", roomForPadding(size))
			if got := line.paths.of(home.config.PublicKey); got != size {
				t.Errorf("path %d, want %d", got, size)
			}
		}
		// It speaks from two places in turn.
		before := home.model.sent
		for i := range 600 {
			home.endpoint = netip.AddrPortFrom(home.endpoint.Addr(), uint16(1000+i%2))
			line.run(time.Second)
		}
		line.want(t, "in the end", 1420)
		if sent := home.model.sent - before; sent > 150 {
			t.Errorf("%d requests in ten minutes of moving", sent)
		}
	})
}

// A peer that is silent for a moment keeps what is known of it.
func TestMTUWhenNothingIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := timed(1, "home", homeAddress, 1412)
		home.traffic = 10 << 10
		line := newTimeline(t, home)
		line.run(time.Minute)
		home.model.carries = 0
		line.run(2 * time.Minute)
		line.want(t, "silent", 1408)
		home.model.carries = 1412
		line.run(time.Minute)
		line.want(t, "back", 1408)
	})
}

func TestMTUThatTheStackRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t, timed(1, "home", homeAddress, 1412))
		line.refuse = 1408
		line.run(time.Minute)
		line.want(t, "refused", 1280)
		if lines := line.logs.FilterMessageSnippet("changing the tunnel's MTU").Len(); lines != 1 {
			t.Errorf("%d lines about it, want one", lines)
		}
	})
}

func TestRoomForPadding(t *testing.T) {
	for path, want := range map[int]int{1280: 1280, 1333: 1328, 1392: 1392, 1400: 1392, 1412: 1408, 1420: 1420} {
		if got := roomForPadding(path); got != want {
			t.Errorf("a path of %d: MTU %d, want %d", path, got, want)
		}
	}
}
