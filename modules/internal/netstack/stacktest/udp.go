package stacktest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// listenUDP opens an unconnected socket at there.
func listenUDP(t *testing.T, p *pair, f family) netstack.UDPConn {
	t.Helper()
	conn, err := p.there.ListenUDP(netip.AddrPortFrom(f.there, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// dialUDP opens a socket at here that is connected to address.
func dialUDP(t *testing.T, p *pair, local, address netip.AddrPort) netstack.UDPConn {
	t.Helper()
	conn, err := p.here.DialUDP(within(t), local, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// echoDatagram sends a datagram from here to server, a socket at there that
// address leads to, and has it sent back.
func echoDatagram(t *testing.T, p *pair, server netstack.UDPConn, address netip.AddrPort, from netip.Addr) {
	t.Helper()
	client := dialUDP(t, p, netip.AddrPort{}, address)
	server.SetDeadline(time.Now().Add(patience))
	want := []byte("datagram to " + address.String())
	if _, err := client.Write(want); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	n, sender, err := server.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := addrPort(sender); got.Addr().Unmap() != from || got.Port() != addrPort(client.LocalAddr()).Port() {
		t.Errorf("sender is %v, want %v", got, client.LocalAddr())
	}
	if _, err := server.WriteTo(buf[:n], sender); err != nil {
		t.Fatal(err)
	}
	if n, err = client.Read(buf); err != nil || !bytes.Equal(buf[:n], want) {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
}

func testUDPEcho(t *testing.T, p *pair, f family) {
	server := listenUDP(t, p, f)
	echoDatagram(t, p, server, addrPort(server.LocalAddr()), f.here)
	if server.RemoteAddr() != nil && addrPort(server.RemoteAddr()).IsValid() {
		t.Errorf("an unconnected socket has remote address %v", server.RemoteAddr())
	}
	client := dialUDP(t, p, netip.AddrPort{}, addrPort(server.LocalAddr()))
	if addrPort(client.RemoteAddr()) != addrPort(server.LocalAddr()) {
		t.Errorf("remote address is %v", client.RemoteAddr())
	}
	_, err := client.WriteTo([]byte("x"), server.LocalAddr())
	wantError(t, "WriteTo on a connected socket", err, net.ErrWriteToConnected)
	if _, err = server.Write([]byte("x")); err == nil {
		t.Error("Write on an unconnected socket works")
	}
}

// testUDPUnconnected has one socket talk to several, as a QUIC client does,
// and a connected one hear nobody but its peer.
func testUDPUnconnected(t *testing.T, p *pair, f family) {
	a, b := listenUDP(t, p, f), listenUDP(t, p, f)
	conn, err := p.here.ListenUDP(netip.AddrPortFrom(f.unspecified, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	for _, server := range []netstack.UDPConn{a, b} {
		if _, err := conn.WriteTo([]byte("hello"), server.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		_, sender, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := addrPort(sender).Addr().Unmap(); got != f.here {
			t.Errorf("sender is %v", got)
		}
		if _, err := server.WriteTo([]byte("back"), sender); err != nil {
			t.Fatal(err)
		}
		n, from, err := conn.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "back" || addrPort(from).Port() != addrPort(server.LocalAddr()).Port() {
			t.Fatalf("got %q from %v, %v", buf[:n], from, err)
		}
	}

	connected := dialUDP(t, p, netip.AddrPort{}, addrPort(a.LocalAddr()))
	b.WriteTo([]byte("stranger"), connected.LocalAddr())
	a.WriteTo([]byte("peer"), connected.LocalAddr())
	if n, err := connected.Read(buf); err != nil || string(buf[:n]) != "peer" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
}

// testUDPSizes sends datagrams from empty to as large as they get, through
// fragments where the MTU asks for them.
func testUDPSizes(t *testing.T, p *pair, f family) {
	server := listenUDP(t, p, f)
	client := dialUDP(t, p, netip.AddrPort{}, addrPort(server.LocalAddr()))
	buf := make([]byte, 1<<16)
	for _, size := range []int{0, 1, 1000, mtu - 48, mtu - 28, mtu, 4000, 9000, 40000, 65507 - 20} {
		want := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(size)}).Read(want)
		if n, err := client.Write(want); n != size || err != nil {
			t.Fatalf("%d bytes: wrote %d, %v", size, n, err)
		}
		n, _, err := server.ReadFrom(buf)
		if err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("%d bytes: read %d, %v", size, n, err)
		}
	}
	_, err := client.Write(make([]byte, 1<<16))
	wantError(t, "writing 64 KiB", err, syscall.EMSGSIZE)
	// What does not fit is lost, and only that.
	client.Write([]byte("0123456789"))
	client.Write([]byte("next"))
	if n, _, err := server.ReadFrom(buf[:4]); n != 4 || err != nil {
		t.Errorf("short read: %d, %v", n, err)
	}
	if n, _, err := server.ReadFrom(buf); err != nil || string(buf[:n]) != "next" {
		t.Errorf("after a short read: %q, %v", buf[:n], err)
	}
}

func testUDPRefused(t *testing.T, p *pair, f family) {
	client := dialUDP(t, p, netip.AddrPort{}, netip.AddrPortFrom(f.there, 9))
	var err error
	buf := make([]byte, 10)
	for start := time.Now(); time.Since(start) < patience; {
		// The first datagram is answered by an ICMP message. Should that be
		// rate-limited, the next is.
		if _, err = client.Write([]byte("anybody?")); err != nil {
			break
		}
		client.SetReadDeadline(time.Now().Add(time.Second))
		if _, err = client.Read(buf); !isTimeout(err) {
			break
		}
	}
	wantError(t, "a closed port", err, syscall.ECONNREFUSED)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func testUDPDeadlines(t *testing.T, p *pair, f family) {
	server := listenUDP(t, p, f)
	server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, _, err := server.ReadFrom(make([]byte, 10))
	wantTimeout(t, "reading", err)
	server.SetReadDeadline(time.Time{})
	failed := make(chan error, 1)
	go func() {
		_, _, err := server.ReadFrom(make([]byte, 10))
		failed <- err
	}()
	server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	wantTimeout(t, "reading when the deadline was set", <-failed)
	server.SetWriteDeadline(time.Now().Add(-time.Second))
	_, err = server.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.here, 9)))
	wantTimeout(t, "writing", err)
	server.SetDeadline(time.Time{})
	echoDatagram(t, p, server, addrPort(server.LocalAddr()), f.here)
}

func testUDPCloseWakes(t *testing.T, p *pair, f family) {
	server := listenUDP(t, p, f)
	failed := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		close(started)
		_, _, err := server.ReadFrom(make([]byte, 10))
		failed <- err
	}()
	<-started
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	wantError(t, "reading", <-failed, net.ErrClosed)
	_, err := server.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.here, 9)))
	wantError(t, "writing", err, net.ErrClosed)
	wantError(t, "closing", server.Close(), net.ErrClosed)
}

func testUDPBusyPort(t *testing.T, p *pair, f family) {
	server := listenUDP(t, p, f)
	address := addrPort(server.LocalAddr())
	_, err := p.there.ListenUDP(address)
	wantError(t, "listening twice", err, syscall.EADDRINUSE)
	server.Close()
	again, err := p.there.ListenUDP(address)
	if err != nil {
		t.Fatalf("listening again: %v", err)
	}
	defer again.Close()
	echoDatagram(t, p, again, address, f.here)
}

func testUDPTransparent(t *testing.T, p *pair, f family) {
	server := listenUDP(t, p, f)
	source := netip.AddrPortFrom(f.client, 40123)
	client := dialUDP(t, p, source, addrPort(server.LocalAddr()))
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	n, sender, err := server.ReadFrom(buf)
	if err != nil || addrPort(sender) != source {
		t.Fatalf("sender is %v, %v, want %v", sender, err, source)
	}
	server.WriteTo(buf[:n], sender)
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "x" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
}

// testUDPFlood sends faster than anybody reads, and looks whether the sender
// can still send when it is over: nothing may stay full or stuck.
func testUDPFlood(t *testing.T, p *pair, f family) {
	server := listenUDP(t, p, f)
	client := dialUDP(t, p, netip.AddrPort{}, addrPort(server.LocalAddr()))
	payload := make([]byte, 1200)
	for range 5000 {
		if _, err := client.Write(payload); err != nil {
			t.Fatal(err)
		}
	}
	last := []byte("last")
	received := 0
	buf := make([]byte, 2000)
	for {
		server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, _, err := server.ReadFrom(buf)
		if isTimeout(err) {
			// The receiver dropped what it had no room for. Now it has.
			if _, err := client.Write(last); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(buf[:n], last) {
			break
		}
		received++
	}
	if received == 0 {
		t.Error("nothing of the flood was received")
	}
}
