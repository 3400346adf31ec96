package kernelns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
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
