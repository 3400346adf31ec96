package kernelns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// clientDials returns the stack's clients with room for a few, a function that
// dials from one, and one that says which have a route.
func clientDials(t *testing.T, room int, memory time.Duration) (c *clients, dial func(client string) (net.Conn, error), routed func(client string) bool) {
	t.Helper()
	s, _ := newTestStack(t)
	c = s.place.Load().clients
	c.max, c.memory = room, memory
	dial = func(client string) (net.Conn, error) {
		local := netip.AddrPortFrom(netip.MustParseAddr(client), 0)
		remote := netip.MustParseAddrPort("10.77.0.2:9")
		if local.Addr().Is6() {
			remote = netip.MustParseAddrPort("[fd77::2]:9")
		}
		conn, err := s.DialUDP(context.Background(), local, remote)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { conn.Close() })
		return conn, nil
	}
	routed = func(client string) bool {
		t.Helper()
		// A second one is refused.
		r := inboundRoute(netip.MustParseAddr(client))
		err := c.namespace.changeRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, r)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
		if err == nil {
			if err := c.namespace.removeRoute(r); err != nil {
				t.Fatal(err)
			}
		}
		return err != nil
	}
	return c, dial, routed
}

// TestClientsBound has more clients than there is room for.
func TestClientsBound(t *testing.T) {
	c, dial, routed := clientDials(t, 4, time.Hour)
	mustDial := func(client string) net.Conn {
		t.Helper()
		conn, err := dial(client)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	want := func(all map[string]bool) {
		t.Helper()
		for client, wanted := range all {
			if got := routed(client); got != wanted {
				t.Errorf("%s has a route: %v, want %v", client, got, wanted)
			}
		}
		if len(c.known) > c.max {
			t.Errorf("%d clients are known, want at most %d", len(c.known), c.max)
		}
	}
	const a, b, d, e, f, g = "203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "2001:db8::5", "2001:db8::6"
	stays := mustDial(a)
	mustDial(b).Close()
	mustDial(d).Close()
	mustDial(b).Close() // again, so that d is now the longest without
	mustDial(e)
	want(map[string]bool{a: true, b: true, d: true, e: true})
	mustDial(f)
	want(map[string]bool{a: true, b: true, d: false, e: true, f: true})
	mustDial(g)
	want(map[string]bool{a: true, b: false, e: true, f: true, g: true})

	// Now all of them have a socket.
	for _, client := range []string{b, "2001:db8::7"} {
		if _, err := dial(client); !errors.Is(err, netstack.ErrTooManyClients) {
			t.Errorf("one more: %v", err)
		}
	}
	mustDial(a) // is known
	stays.Close()
	if _, err := dial(b); !errors.Is(err, netstack.ErrTooManyClients) {
		t.Errorf("one more, while the first has another socket: %v", err)
	}
	want(map[string]bool{a: true, b: false, d: false, e: true, f: true, g: true})
}

// TestClientBecomesOwn gives the stack an address that was a client's, and takes it away
// again while it is one.
func TestClientBecomesOwn(t *testing.T) {
	s, _ := newTestStack(t)
	client := netip.MustParseAddr("203.0.113.1")
	with := append(slices.Clone(testAddresses), netip.PrefixFrom(client, 32))
	dial := func() net.Conn {
		t.Helper()
		conn, err := s.DialUDP(t.Context(), netip.AddrPortFrom(client, 4000), netip.MustParseAddrPort("10.77.0.2:9"))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	set := func(addresses []netip.Prefix) {
		t.Helper()
		if err := s.SetAddresses(addresses); err != nil {
			t.Fatal(err)
		}
	}
	c := s.place.Load().clients
	routed := func() bool {
		t.Helper()
		// A second one is refused.
		err := c.namespace.changeRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, inboundRoute(client))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
		return err != nil
	}

	dial().Close()
	set(with)
	c.mu.Lock()
	c.memory = 0
	c.mu.Unlock()
	c.forgetLeft()
	if !routed() {
		t.Error("the route has gone with the client, and the address is the stack's")
	}

	set(testAddresses)
	defer dial().Close()
	set(with)
	set(testAddresses)
	if !routed() {
		t.Error("the route has gone with the stack's address, and the client is there")
	}
}

// TestClientOfAnotherFamily is a client of a family that the stack has no address of.
func TestClientOfAnotherFamily(t *testing.T) {
	s, err := newStack(Config{Name: "wg0", MTU: 1420, Addresses: testAddresses[:1]})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	conn, err := s.DialUDP(t.Context(), netip.MustParseAddrPort("[2001:db8::7]:4000"), netip.MustParseAddrPort("[fd77::2]:9"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestClientsForgotten looks at what becomes of clients that have left.
func TestClientsForgotten(t *testing.T) {
	c, dial, routed := clientDials(t, clientsMax, time.Millisecond)
	stays := "203.0.113.1"
	if _, err := dial(stays); err != nil {
		t.Fatal(err)
	}
	// More than are forgotten at once.
	for i := range 3 * forgetBatch {
		client := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}).String()
		conn, err := dial(client)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	eventually(t, "forgetting those who have left", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.known) == 1 && c.left.Len() == 0
	})
	for client, want := range map[string]bool{stays: true, "198.51.100.0": false, "198.51.100.191": false} {
		if got := routed(client); got != want {
			t.Errorf("%s has a route: %v, want %v", client, got, want)
		}
	}
}
