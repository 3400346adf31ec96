package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// A keepalive to a peer that has not called would go nowhere, and with it a
// handshake.
func TestKeepaliveWaitsForAnEndpoint(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relayConfig.Peers[0].PersistentKeepalive = 25 * time.Second
	core, logs := observer.New(zap.DebugLevel)
	c := New("relay").Claim(relayConfig, zap.New(core))
	t.Cleanup(func() { c.Release() })
	if err := c.Prepare(); err != nil {
		t.Fatal(err)
	}
	echoAt(t, claim(t, New("home"), homeConfig), 7)
	mustEcho(t, dial(t, c, homeAddress, 7), "home has called")

	at := func(text string) int {
		return slices.IndexFunc(deviceLines(logs), func(entry observer.LoggedEntry) bool { return strings.Contains(detail(entry), text) })
	}
	const keepalive = "Updating persistent keepalive interval"
	await(t, func() error {
		if at(keepalive) < 0 {
			return errors.New("there is no keepalive")
		}
		return nil
	})
	if called := at("Received handshake initiation"); called < 0 || called > at(keepalive) {
		t.Errorf("home called in line %d, the keepalive was turned on in line %d", called, at(keepalive))
	}
}

// A home that has nothing to ask for learns of the relay's other port, in the
// session that it has.
func TestPortSwitchReachesAnIdlePeer(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay, home := New("relay"), New("home")
	r, h := claim(t, relay, relayConfig), claim(t, home, homeConfig)
	service, err := r.ListenUDP(netip.AddrPortFrom(relayAddress, 9))
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	flow, err := h.DialUDP(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(relayAddress, 9))
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	for _, conn := range []net.Conn{service, flow} {
		conn.SetDeadline(time.Now().Add(30 * time.Second))
	}
	// The relay has the last word, so that it owes home nothing.
	buf := make([]byte, 9)
	flow.Write([]byte("question"))
	if _, from, err := service.ReadFrom(buf); err != nil {
		t.Fatal(err)
	} else if _, err := service.WriteTo([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if _, err := flow.Read(buf); err != nil {
		t.Fatal(err)
	}
	await(t, func() error {
		if relay.live.lastReceived(relayConfig.Peers[0].PublicKey).IsZero() {
			return errors.New("the relay has not noticed home")
		}
		return nil
	})

	session := home.Status()[0].LastHandshake
	next := *relayConfig
	next.ListenPort = freePort(t)
	reload(t, r, &next)
	await(t, func() error {
		if at := home.Status()[0].Endpoint; at.Port() != next.ListenPort {
			return fmt.Errorf("home speaks to %s, and the relay listens on port %d", at, next.ListenPort)
		}
		return nil
	})
	if now := home.Status()[0].LastHandshake; !now.Equal(session) {
		t.Errorf("it took another handshake: the session is of %v, and was of %v", now, session)
	}
}

// Another endpoint is called at once if the one before has not answered, and
// without a session that is lost if it has.
func TestMisledPeers(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	right := homeConfig.Peers[0].Endpoint
	wrong := *homeConfig
	wrong.Peers = slices.Clone(homeConfig.Peers)
	wrong.Peers[0].Endpoint = listenForCalls(t).address()
	home := New("home")
	h := claim(t, home, &wrong)
	misled := func(endpoint string) int {
		next := wrong
		next.Peers = slices.Clone(wrong.Peers)
		next.Peers[0].Endpoint = endpoint
		home.live.mu.Lock()
		defer home.live.mu.Unlock()
		return len(home.live.misled(&next))
	}
	await(t, func() error {
		if misled(right) != 1 {
			return errors.New("the peer is not known to be called in vain")
		}
		return nil
	})
	for _, endpoint := range []string{wrong.Peers[0].Endpoint, "relay.example.net:51820", ""} {
		if misled(endpoint) != 0 {
			t.Errorf("with the endpoint %q the peer is called anew", endpoint)
		}
	}
	r := claim(t, New("relay"), relayConfig)
	echoAt(t, r, 7)
	h, _ = reload(t, h, homeConfig)
	mustEcho(t, dial(t, h, relayAddress, 7), "at the right endpoint")
	wrong = *homeConfig
	if misled("127.0.0.1:9") != 0 {
		t.Error("a peer with a session is called anew")
	}
}
