package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Two sockets that a client's address and port lead to would take each other's
// datagrams: the second one is refused until the first is closed.
func TestUDPSourceClash(t *testing.T) {
	for _, tt := range []struct{ name, source, first, second string }{
		{"IPv4", "203.0.113.9", "10.77.0.2:7", "10.77.0.2:8"},
		{"IPv6", "2001:db8::9", "[fd77::2]:7", "[fd77::2]:8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, _ := ends(t)
			tunnel := New("sources")
			// The table is the tunnel's, not a configuration's.
			c, next := claim(t, tunnel, config), claim(t, tunnel, config)
			source := netip.AddrPortFrom(netip.MustParseAddr(tt.source), 4711)
			first, second := netip.MustParseAddrPort(tt.first), netip.MustParseAddrPort(tt.second)

			conn, err := c.DialUDP(t.Context(), source, first)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := conn.LocalAddr().String(); got != source.String() {
				t.Errorf("the source is %s", got)
			}
			if _, err := next.DialUDP(t.Context(), source, first); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("the same source and upstream: %v", err)
			}
			other, err := next.DialUDP(t.Context(), source, second)
			if err != nil {
				t.Fatalf("another upstream: %v", err)
			}
			defer other.Close()
			free, err := next.DialUDP(t.Context(), netip.AddrPortFrom(source.Addr(), 0), first)
			if err != nil {
				t.Fatalf("any port: %v", err)
			}
			defer free.Close()
			if at := free.LocalAddr().(*net.UDPAddr).AddrPort(); at.Addr().Unmap() != source.Addr() || at.Port() == 0 || at == source {
				t.Errorf("any port is %s", at)
			}

			// Closing twice frees nobody else's.
			conn.Close()
			again, err := next.DialUDP(t.Context(), source, first)
			if err != nil {
				t.Fatalf("after the first is closed: %v", err)
			}
			defer again.Close()
			conn.Close()
			if _, err := c.DialUDP(t.Context(), source, first); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("after the first is closed again: %v", err)
			}
		})
	}
}

// A home that drops what comes from clients, as its allowed IPs tell it to, is up
// and does not answer: the error says what it lacks.
func TestTransparentUnanswered(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := claim(t, New("relay"), relayConfig)
	home := claim(t, New("home"), homeConfig)
	echoAt(t, home, 7)
	mustEcho(t, dial(t, relay, homeAddress, 7), "up")
	for _, tt := range []struct {
		name, source, remote string
		want                 []string
	}{
		{"IPv4", "203.0.113.9:4711", "10.77.0.2:7", []string{"10.77.0.2:7 does not answer", "client 203.0.113.9", "0.0.0.0/0, ::/0", "ip -4 rule add from 10.77.0.2 "}},
		{"IPv6", "[2001:db8::9]:4711", "[fd77::2]:7", []string{"client 2001:db8::9", "ip -6 rule add from fd77::2 "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := relay.DialTCP(ctx, netip.MustParseAddrPort(tt.source), netip.MustParseAddrPort(tt.remote))
			if err == nil {
				t.Fatal("home answered")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
			}
		})
	}
}
