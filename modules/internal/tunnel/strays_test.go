package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Home gets another address while the relay is away. It runs another WireGuard, which
// goes on saying keepalives in a session that the new relay does not know.
func TestHomeMovesWhileTheRelayIsAway(t *testing.T) {
	for _, remembered := range []bool{true, false} {
		t.Run(fmt.Sprintf("remembered=%t", remembered), func(t *testing.T) {
			relayConfig, homeConfig := ends(t)
			relayConfig.Stack, homeConfig.Stack = StackGvisor, StackGvisor
			homeConfig.ListenPort = freePort(t)
			homeConfig.Peers[0].PersistentKeepalive = time.Second
			relayConfig.Store = new(memoryStore)
			// Others that are not there are called in vain.
			for i := range 3 {
				relayConfig.Peers = append(relayConfig.Peers, Peer{Name: fmt.Sprint("away", i), PublicKey: key(byte(i + 1)), AllowedIPs: prefixes(fmt.Sprintf("10.77.0.%d/32", 100+i))})
			}

			first := claim(t, New("relay"), relayConfig)
			home := stockEnd(t, homeConfig)
			if err := home.device.IpcSet(keepaliveChange(homeConfig.Peers[0].PublicKey, time.Second)); err != nil {
				t.Fatal(err)
			}
			listener, err := home.stack.ListenTCP(netip.AddrPortFrom(homeAddress, 7))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { listener.Close() })
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					go io.Copy(conn, conn)
				}
			}()
			mustEcho(t, dial(t, first, homeAddress, 7), "before")
			first.Release()

			if err := home.device.IpcSet(fmt.Sprintf("listen_port=%d\n", freePort(t))); err != nil {
				t.Fatal(err)
			}
			if !remembered {
				relayConfig.Store = new(memoryStore)
			}
			core, logs := observer.New(zap.InfoLevel)
			second := New("relay").Claim(relayConfig, zap.New(core))
			t.Cleanup(func() { second.Release() })
			if err := second.Prepare(); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			mustEcho(t, dial(t, second, homeAddress, 7), "after")
			t.Logf("home was reached after %v", time.Since(begin).Round(time.Millisecond))
			if logs.FilterMessageSnippet("a session that is not known here").Len() == 0 {
				t.Errorf("it was reached by other means: %v", logs.All())
			}
		})
	}
}

// What anybody can send makes this end call now and then, where it came from, and a peer
// that does not answer there is called where it was last heard.
func TestStraysAreFew(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relayConfig.Stack = StackGvisor
	store := new(memoryStore)
	relayConfig.Store = store
	quiet := openLoopback(t)
	defer quiet.Close()
	store.put(relayConfig.PrivateKey.Public(), storedPeer(homeConfig.PrivateKey.Public(), quiet.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort(), time.Now()))
	core, logs := observer.New(zap.InfoLevel)
	relay := New("relay").Claim(relayConfig, zap.New(core))
	t.Cleanup(func() { relay.Release() })
	if err := relay.Prepare(); err != nil {
		t.Fatal(err)
	}
	stranger := openLoopback(t)
	defer stranger.Close()
	message := make([]byte, 32) // a keepalive
	message[0] = 4
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), relayConfig.ListenPort)
	sent, stop := 0, time.After(strayEvery+strayPatience+2*time.Second)
	for ticker := time.NewTicker(5 * time.Millisecond); ; sent++ {
		select {
		case <-ticker.C:
			if _, err := stranger.WriteToUDPAddrPort(message, to); err != nil {
				t.Fatal(err)
			}
			continue
		case <-stop:
			ticker.Stop()
		}
		break
	}
	calls := logs.FilterMessageSnippet("a session that is not known here").Len()
	if calls == 0 || calls > 3 {
		t.Errorf("%d messages have led to %d calls, want 1 to 3", sent, calls)
	}
	var back int
	for _, entry := range logs.FilterMessage("calling peer where it was last heard").All() {
		if strings.HasSuffix(fmt.Sprint(entry.ContextMap()["endpoint"]), fmt.Sprint(quiet.LocalAddr())) {
			back++
		}
	}
	if back < 2 {
		t.Errorf("the peer was called %d times where it was last heard, want that again after a stray", back)
	}
}

// A home that speaks in its former session before it has answered the new relay is no
// stray: the others are left alone.
func TestBusyHomeIsNoStray(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relayConfig.Stack, homeConfig.Stack = StackGvisor, StackGvisor
	homeConfig.ListenPort = freePort(t)
	store := new(memoryStore)
	relayConfig.Store = store
	relayConfig.Peers = append(relayConfig.Peers, Peer{Name: "phone", PublicKey: key(1), AllowedIPs: prefixes("10.77.0.100/32")})
	first := claim(t, New("relay"), relayConfig)
	home := stockEnd(t, homeConfig)
	if err := home.device.IpcSet(keepaliveChange(homeConfig.Peers[0].PublicKey, time.Second)); err != nil {
		t.Fatal(err)
	}
	await(t, func() error {
		if store.content() == "" {
			return errors.New("home has not called")
		}
		return nil
	})
	first.Release()

	core, logs := observer.New(zap.InfoLevel)
	second := New("relay").Claim(relayConfig, zap.New(core))
	t.Cleanup(func() { second.Release() })
	if err := second.Prepare(); err != nil {
		t.Fatal(err)
	}
	stop := time.After(strayAfter + 3*time.Second)
	for ticker := time.NewTicker(time.Millisecond); ; {
		select {
		case <-ticker.C:
			home.peer.SendKeepalive()
			continue
		case <-stop:
			ticker.Stop()
		}
		break
	}
	if calls := logs.FilterMessageSnippet("a session that is not known here"); calls.Len() > 0 {
		t.Errorf("the phone was called at home's address: %v", calls.All())
	}
}
