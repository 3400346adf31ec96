package tunnel

import (
	"net/netip"
	"testing"
	"time"
)

// A name is looked up again when the address that it had does not answer, and
// only then: where a peer answers is where it is.
func TestNameIsDue(t *testing.T) {
	now := time.Now()
	ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	set := endpointName{name: "vm.example.net:51820", setAt: ago(3600), sentAt: 1000}
	there := netip.MustParseAddrPort("203.0.113.5:51820")
	for _, tt := range []struct {
		name       string
		endpoint   endpointName
		keepalive  time.Duration
		status     PeerStatus
		unanswered time.Time
		cut        bool
		want       bool
	}{
		{"at first", endpointName{}, 0, PeerStatus{}, time.Time{}, false, true},
		{"while it cannot be resolved", endpointName{retryAt: now.Add(time.Second)}, 0, PeerStatus{}, time.Time{}, false, false},
		{"the peer was added anew", set, 0, PeerStatus{}, time.Time{}, false, true},
		{"the peer answers", set, 0, PeerStatus{Endpoint: there, LastHandshake: ago(60), Sent: 2000}, time.Time{}, false, false},
		{"idle for an hour", set, 0, PeerStatus{Endpoint: there, LastHandshake: ago(3500), Sent: 1000}, time.Time{}, false, false},
		{"idle, and its session has ended under keepalives", set, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(200), Sent: 2000}, time.Time{}, false, true},
		{"a handshake is under way", set, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(100), Sent: 2000}, ago(3), false, false},
		{"a handshake goes unanswered", set, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(100), Sent: 2000}, ago(20), false, true},
		{"it has left one unanswered when it was called there before", endpointName{name: set.name, setAt: ago(5)}, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(100), Sent: 2000}, ago(5000), false, false},
		{"and leaves one unanswered now", endpointName{name: set.name, setAt: ago(7)}, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(100), Sent: 2000}, ago(5000), false, true},
		{"the peer has called since", set, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(5), Sent: 2000}, ago(20), false, false},
		{"another address was just taken", endpointName{name: set.name, setAt: ago(5)}, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(100)}, ago(20), false, false},
		{"there is no route to it any more", set, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(5), Sent: 2000}, time.Time{}, true, true},
		{"nor has there been one to any", endpointName{name: set.name, setAt: ago(60), retryAt: now.Add(time.Second)}, 25 * time.Second, PeerStatus{Endpoint: there, LastHandshake: ago(5)}, time.Time{}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			peer := Peer{Endpoint: set.name, PersistentKeepalive: tt.keepalive}
			if got := tt.endpoint.due(now, &peer, tt.cut, tt.status, tt.unanswered); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// A peer that was started anew, and does not know where we are, hears of us as
// soon as some keepalives have gone unheard.
func TestSilentPeerIsAsked(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	homeConfig.Peers[0].PersistentKeepalive = time.Second
	first := claim(t, New("relay"), relayConfig)
	h := claim(t, New("home"), homeConfig)
	echoAt(t, h, 7)
	mustEcho(t, dial(t, first, homeAddress, 7), "before")
	handshake := h.Tunnel().Status()[0].LastHandshake
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	// Without a store it does not know where home is.
	second := claim(t, New("relay"), relayConfig)
	mustEcho(t, dial(t, second, homeAddress, 7), "after")
	if took := h.Tunnel().Status()[0].LastHandshake.Sub(handshake); took > sessionMax/2 {
		t.Errorf("home called after %v only", took)
	}
}
