package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// The sockets of a tunnel die, and it goes on with others on the same port.
func TestDeadSocketIsReplaced(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := claim(t, New("relay"), relayConfig)
	home := claim(t, New("home"), homeConfig)
	echoAt(t, home, 7)
	conn := dial(t, relay, homeAddress, 7)
	mustEcho(t, conn, "before")

	l := relay.Tunnel().live
	if err := l.bind.Close(); err != nil { // and with it all that it receives from
		t.Fatal(err)
	}
	// Another program has the port for a moment.
	busy, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(relayConfig.ListenPort)})
	if err != nil {
		t.Fatal(err)
	}
	l.bind.Fail(errors.New("the network is down"))
	await(t, func() error {
		select {
		case err := <-l.bind.Failed():
			l.bind.Fail(err)
			return errors.New("nobody has looked at it")
		default:
			return nil
		}
	})
	busy.Close()
	mustEcho(t, conn, "after")
	if got := l.port; got != relayConfig.ListenPort {
		t.Errorf("it is on port %d, was on %d", got, relayConfig.ListenPort)
	}
}

func TestSourceFor(t *testing.T) {
	if got, want := sourceFor(netip.MustParseAddrPort("127.0.0.1:9")), netip.MustParseAddr("127.0.0.1"); got != want {
		t.Errorf("loopback is reached from %v", got)
	}
	// A multicast address of another interface than any of ours.
	if got := sourceFor(netip.MustParseAddrPort("[fe80::1%99999]:9")); got.IsValid() {
		t.Errorf("over an interface that is not there from %v", got)
	}
}

// A peer that this end calls is told when this end is at another address, and no
// other is.
func TestWaysOfPeers(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := claim(t, New("relay"), relayConfig)
	homeConfig.Peers[0].PersistentKeepalive = time.Hour
	home := claim(t, New("home"), homeConfig)
	echoAt(t, home, 7)
	mustEcho(t, dial(t, relay, homeAddress, 7), "before")
	key := homeConfig.Peers[0].PublicKey

	l := home.Tunnel().live
	sent := func() uint64 { return l.statusByKey()[key].Sent }
	r := routes{ways: make(map[PublicKey]way)}
	look := func() { l.followRoutes(&r, homeConfig.Peers, l.statusByKey()) }
	look()
	endpoint := l.statusByKey()[key].Endpoint
	loopback := netip.MustParseAddr("127.0.0.1")
	if got, want := r.ways[key], (way{endpoint, loopback, false}); got != want {
		t.Fatalf("its way is %v, want %v", got, want)
	}
	r.ways[key] = way{endpoint, netip.MustParseAddr("192.0.2.8"), true} // it had been elsewhere
	before := sent()
	look()
	await(t, func() error {
		if sent() == before {
			return errors.New("the relay was told nothing")
		}
		return nil
	})
	if got, want := r.ways[key], (way{endpoint, loopback, false}); got != want {
		t.Errorf("its way is %v now, want %v", got, want)
	}

	l = relay.Tunnel().live // does not call home
	look = func() { l.followRoutes(&r, relayConfig.Peers, l.statusByKey()) }
	look()
	if len(r.ways) != 0 {
		t.Errorf("the relay follows its ways to %v", r.ways)
	}
}
