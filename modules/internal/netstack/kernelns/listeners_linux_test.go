package kernelns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestUDPListener uses a socket on a given port as the suite does those on any.
func TestUDPListener(t *testing.T) {
	s, _ := newTestStack(t)
	server, err := s.ListenUDP(netip.MustParseAddrPort("10.77.0.1:8080"))
	if err != nil {
		t.Fatal(err)
	}
	if got := server.LocalAddr().String(); got != "10.77.0.1:8080" {
		t.Errorf("local address is %s", got)
	}
	if got := server.RemoteAddr(); got != nil {
		t.Errorf("remote address is %v", got)
	}
	client, err := s.DialUDP(context.Background(), netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.1:8080"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(30 * time.Second))
	server.SetDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 10)
	if _, err := client.Write([]byte("over")); err != nil {
		t.Fatal(err)
	}
	n, from, err := server.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "over" || from.String() != client.LocalAddr().String() {
		t.Fatalf("got %q from %v, %v", buf[:n], from, err)
	}
	if _, err := server.WriteTo([]byte("back"), from); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "back" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
	if _, err := server.Write([]byte("to nobody")); !errors.Is(err, syscall.EDESTADDRREQ) {
		t.Errorf("Write: %v", err)
	}
	past := time.Unix(1, 0)
	server.SetReadDeadline(past)
	if _, err := server.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading after the deadline: %v", err)
	}
	if _, err := server.WriteTo([]byte("x"), from); err != nil {
		t.Errorf("writing after the deadline for reads: %v", err)
	}
	server.SetWriteDeadline(past)
	if _, err := server.WriteTo([]byte("x"), from); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writing after the deadline: %v", err)
	}

	server.SetDeadline(time.Time{})
	failed := make(chan error, 1)
	go func() {
		_, _, err := server.ReadFrom(make([]byte, 10))
		failed <- err
	}()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading ended with %v", err)
	}
	if err := server.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closing again: %v", err)
	}
}

// TestUDPListenerInBetween answers while the stack is at another place already and
// the listener is not: nobody is told of an error that will be none in a moment.
func TestUDPListenerInBetween(t *testing.T) {
	s, _ := newTestStack(t)
	l, err := s.ListenUDP(netip.MustParseAddrPort("[::]:8080"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.77.0.2:4711"))
	s.mu.Lock()
	err = s.move("")
	s.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.(*udpListener).current().WriteTo([]byte("lost"), to); err == nil {
		t.Fatal("there is a way out of the place that was left")
	}
	if n, err := l.WriteTo([]byte("lost"), to); n != 4 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if !s.listenAgain() {
		t.Fatal("it does not listen again")
	}
	if n, err := l.WriteTo([]byte("sent"), to); n != 4 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

// TestListenAgainLater has listeners that cannot be opened at first in the next
// namespace, since their address has been taken away: they are, once it is back.
func TestListenAgainLater(t *testing.T) {
	s, logs := newTestStack(t)
	later := netip.MustParsePrefix("10.78.0.1/24")
	with := append(slices.Clone(testAddresses), later)
	if err := s.SetAddresses(with); err != nil {
		t.Fatal(err)
	}
	local := netip.AddrPortFrom(later.Addr(), 8080)
	listener, err := s.ListenTCP(local)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	datagrams, err := s.ListenUDP(local)
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	for _, set := range []func(time.Time) error{listener.SetDeadline, datagrams.SetDeadline} {
		if err := set(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetAddresses(testAddresses); err != nil {
		t.Fatal(err)
	}
	loseNamespace(t, s)
	const failed = "trying until it can be"
	eventually(t, "a line in the log for each", func() bool { return logs.FilterMessageSnippet(failed).Len() == 2 })
	if err := s.SetAddresses(with); err != nil {
		t.Fatal(err)
	}
	reach(t, s, local.String())
	if conn, err := listener.Accept(); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	eventually(t, "a datagram", func() bool {
		conn, err := s.DialUDP(context.Background(), netip.AddrPort{}, local)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write([]byte("hello"))
		datagrams.SetReadDeadline(time.Now().Add(time.Second))
		_, _, err = datagrams.ReadFrom(make([]byte, 10))
		return err == nil
	})
	if got := logs.FilterMessageSnippet(failed).Len(); got != 2 {
		t.Errorf("%d lines in the log, want 2", got)
	}
}

// TestListenOnDialedPort listens on a port that connections were dialed from:
// they go on, and the listener gets what is its own.
func TestListenOnDialedPort(t *testing.T) {
	s, _ := newTestStack(t)
	for _, family := range []struct {
		name             string
		own, unspecified netip.Addr
	}{
		{"IPv4", netip.MustParseAddr("10.77.0.1"), netip.IPv4Unspecified()},
		{"IPv6", netip.MustParseAddr("fd77::1"), netip.IPv6Unspecified()},
		{"IPv4 and all", netip.MustParseAddr("10.77.0.1"), netip.IPv6Unspecified()},
	} {
		t.Run(family.name+" TCP", func(t *testing.T) {
			dialed, accepted := loopAt(t, s, family.own)
			port := dialed.LocalAddr().(*net.TCPAddr).AddrPort()
			listener, err := s.ListenTCP(netip.AddrPortFrom(family.unspecified, port.Port()))
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			if _, err := s.ListenTCP(port); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("listening twice: %v", err)
			}
			exchange(t, dialed, accepted)
			reach(t, s, port.String())
			if conn, err := listener.Accept(); err != nil {
				t.Error(err)
			} else {
				conn.Close()
			}
			exchange(t, accepted, dialed)
		})
		t.Run(family.name+" UDP", func(t *testing.T) {
			bind := func(local netip.AddrPort) net.PacketConn {
				t.Helper()
				conn, err := s.ListenUDP(local)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				return conn
			}
			peer, stranger := bind(netip.AddrPortFrom(family.own, 0)), bind(netip.AddrPortFrom(family.own, 0))
			dialed, err := s.DialUDP(context.Background(), netip.AddrPort{}, peer.LocalAddr().(*net.UDPAddr).AddrPort())
			if err != nil {
				t.Fatal(err)
			}
			defer dialed.Close()
			dialed.SetDeadline(time.Now().Add(30 * time.Second))
			port := dialed.LocalAddr().(*net.UDPAddr).AddrPort()
			listener := bind(netip.AddrPortFrom(family.unspecified, port.Port()))
			if _, err := s.ListenUDP(port); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("listening twice: %v", err)
			}
			for _, sent := range []struct {
				by       net.PacketConn
				text     string
				received func([]byte) (int, error)
			}{
				{stranger, "to the listener", listener.(net.Conn).Read},
				{peer, "to the dialed", dialed.Read},
				{stranger, "to the listener again", listener.(net.Conn).Read},
			} {
				if _, err := sent.by.WriteTo([]byte(sent.text), net.UDPAddrFromAddrPort(port)); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 100)
				if n, err := sent.received(buf); err != nil || string(buf[:n]) != sent.text {
					t.Errorf("got %q, %v, want %q", buf[:n], err, sent.text)
				}
			}
		})
	}
}

// TestBusyUDPPort has many listeners on one port at once, of which one gets it.
func TestBusyUDPPort(t *testing.T) {
	s, _ := newTestStack(t)
	for range 20 {
		conns, errs := make([]net.PacketConn, 10), make([]error, 10)
		var all sync.WaitGroup
		for i := range conns {
			all.Go(func() { conns[i], errs[i] = s.ListenUDP(netip.MustParseAddrPort("[::]:8080")) })
		}
		all.Wait()
		got := 0
		for i, err := range errs {
			switch {
			case err == nil:
				got++
				conns[i].Close()
			case !errors.Is(err, syscall.EADDRINUSE):
				t.Error(err)
			}
		}
		if got != 1 {
			t.Fatalf("%d listeners have the port", got)
		}
	}
}

// TestPortsOfDials looks at the ports that dials come from: those below are
// left to listeners.
func TestPortsOfDials(t *testing.T) {
	s, _ := newTestStack(t)
	for range 100 {
		conn, err := s.DialUDP(context.Background(), netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.2:9"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if port := conn.LocalAddr().(*net.UDPAddr).Port; port < 16384 {
			t.Fatalf("a dial comes from port %d", port)
		}
	}
}
