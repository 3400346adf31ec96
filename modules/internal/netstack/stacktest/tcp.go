package stacktest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// listen listens at there, on a free port of its address of f.
func listen(t *testing.T, p *pair, f family) netstack.TCPListener {
	t.Helper()
	listener, err := p.there.ListenTCP(netip.AddrPortFrom(f.there, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	if err := listener.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return listener
}

func addrPort(addr net.Addr) netip.AddrPort {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// connect dials from here to a listener at there, and returns both ends.
func connect(t *testing.T, p *pair, listener netstack.TCPListener) (dialed, accepted netstack.TCPConn) {
	t.Helper()
	return connectFrom(t, p, netip.AddrPort{}, listener)
}

func connectFrom(t *testing.T, p *pair, local netip.AddrPort, listener netstack.TCPListener) (dialed, accepted netstack.TCPConn) {
	t.Helper()
	dialed, err := p.here.DialTCP(within(t), local, addrPort(listener.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close() })
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	accepted, ok := conn.(netstack.TCPConn)
	if !ok {
		t.Fatalf("Accept returned a %T, which is no TCPConn", conn)
	}
	t.Cleanup(func() { accepted.Close() })
	for _, c := range []netstack.TCPConn{dialed, accepted} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return dialed, accepted
}

// exchange checks that bytes pass in both directions.
func exchange(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, way := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		want := []byte("ping over " + way.from.LocalAddr().String())
		if _, err := way.from.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(way.to, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func wantError(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	t.Errorf("%s: error is %v, want %v", what, err, want)
}

func testTCPEcho(t *testing.T, p *pair, f family) {
	listener := listen(t, p, f)
	dialed, accepted := connect(t, p, listener)
	exchange(t, dialed, accepted)
	if got := addrPort(dialed.LocalAddr()); got.Addr() != f.here || got.Port() == 0 {
		t.Errorf("local address is %v", got)
	}
	for _, pair := range [][2]net.Addr{
		{dialed.LocalAddr(), accepted.RemoteAddr()},
		{dialed.RemoteAddr(), accepted.LocalAddr()},
		{dialed.RemoteAddr(), listener.Addr()},
	} {
		if addrPort(pair[0]) != addrPort(pair[1]) || !addrPort(pair[0]).IsValid() {
			t.Errorf("addresses differ: %v, %v", pair[0], pair[1])
		}
	}
}

// stream writes size pseudo-random bytes to w, in pieces of odd sizes, then
// half-closes, and returns their hash.
func stream(w netstack.TCPConn, seed uint64, size int) ([]byte, error) {
	random := rand.NewChaCha8([32]byte{byte(seed)})
	sizes := rand.New(rand.NewPCG(seed, 0))
	hash := sha256.New()
	buf := make([]byte, 100<<10)
	for size > 0 {
		piece := buf[:min(size, 1+sizes.IntN(len(buf)))]
		random.Read(piece)
		hash.Write(piece)
		if _, err := w.Write(piece); err != nil {
			return nil, err
		}
		size -= len(piece)
	}
	return hash.Sum(nil), w.CloseWrite()
}

func testTCPBulk(t *testing.T, p *pair, f family) {
	const size = 8 << 20
	dialed, accepted := connect(t, p, listen(t, p, f))
	type result struct {
		sum []byte
		err error
	}
	sent, received := make(chan result, 2), make(chan result, 2)
	for i, c := range []netstack.TCPConn{dialed, accepted} {
		go func() {
			sum, err := stream(c, uint64(i), size)
			sent <- result{sum, err}
		}()
		go func() {
			hash := sha256.New()
			_, err := io.Copy(hash, c)
			received <- result{hash.Sum(nil), err}
		}()
	}
	sums := map[string]int{}
	for range 2 {
		s, r := <-sent, <-received
		if s.err != nil || r.err != nil {
			t.Fatalf("sending: %v, receiving: %v", s.err, r.err)
		}
		sums[string(s.sum)]++
		sums[string(r.sum)]++
	}
	for _, n := range sums {
		if len(sums) != 2 || n != 2 {
			t.Fatal("what arrived is not what was sent")
		}
	}
}

func testTCPHalfClose(t *testing.T, p *pair, f family) {
	dialed, accepted := connect(t, p, listen(t, p, f))
	if _, err := dialed.Write([]byte("request")); err != nil {
		t.Fatal(err)
	}
	if err := dialed.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(accepted); err != nil || string(got) != "request" {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := dialed.Write([]byte("x")); err == nil {
		t.Error("writing after CloseWrite works")
	} else {
		wantError(t, "writing after CloseWrite", err, syscall.EPIPE)
	}
	response := bytes.Repeat([]byte("response"), 10000)
	go func() {
		accepted.Write(response)
		accepted.Close()
	}()
	if got, err := io.ReadAll(dialed); err != nil || !bytes.Equal(got, response) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
}

func testTCPCloseRead(t *testing.T, p *pair, f family) {
	dialed, accepted := connect(t, p, listen(t, p, f))
	if err := accepted.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if n, err := accepted.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("reading after CloseRead: %d, %v", n, err)
	}
	if _, err := accepted.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if _, err := io.ReadFull(dialed, got); err != nil || string(got) != "still here" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func testTCPRefused(t *testing.T, p *pair, f family) {
	_, err := p.here.DialTCP(within(t), netip.AddrPort{}, netip.AddrPortFrom(f.there, 9))
	wantError(t, "dialing a closed port", err, syscall.ECONNREFUSED)
}

func testTCPDialContext(t *testing.T, p *pair, f family) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := p.here.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(f.nobody, 80))
	wantError(t, "dialing nobody", err, context.DeadlineExceeded)
	if took := time.Since(start); took > patience/2 {
		t.Errorf("took %v", took)
	}
	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	_, err = p.here.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(f.there, 80))
	wantError(t, "dialing with a cancelled context", err, context.Canceled)
	_, err = p.here.DialUDP(ctx, netip.AddrPort{}, netip.AddrPortFrom(f.there, 80))
	wantError(t, "dialing UDP with a cancelled context", err, context.Canceled)
}

func testTCPBusyPort(t *testing.T, p *pair, f family) {
	listener := listen(t, p, f)
	address := addrPort(listener.Addr())
	_, err := p.there.ListenTCP(address)
	wantError(t, "listening twice", err, syscall.EADDRINUSE)
	dialed, accepted := connect(t, p, listener)
	listener.Close()
	again, err := p.there.ListenTCP(address)
	if err != nil {
		t.Fatalf("listening again: %v", err)
	}
	defer again.Close()
	exchange(t, dialed, accepted)
	again.SetDeadline(time.Now().Add(patience))
	exchangeOver(t, p, again)
}

func exchangeOver(t *testing.T, p *pair, listener netstack.TCPListener) {
	t.Helper()
	dialed, accepted := connect(t, p, listener)
	exchange(t, dialed, accepted)
}

func testTCPTransparent(t *testing.T, p *pair, f family) {
	listener := listen(t, p, f)
	source := netip.AddrPortFrom(f.client, 40123)
	dialed, accepted := connectFrom(t, p, source, listener)
	exchange(t, dialed, accepted)
	if got := addrPort(accepted.RemoteAddr()); got != source {
		t.Errorf("the listener sees %v, want %v", got, source)
	}
	// The same client, with a port that the stack chooses.
	dialed, accepted = connectFrom(t, p, netip.AddrPortFrom(f.client, 0), listener)
	exchange(t, dialed, accepted)
	if got := addrPort(accepted.RemoteAddr()); got.Addr() != f.client || got.Port() == 0 {
		t.Errorf("the listener sees %v, want %v", got, f.client)
	}
}

func testTCPTransparentClash(t *testing.T, p *pair, f family) {
	first, second := listen(t, p, f), listen(t, p, f)
	source := netip.AddrPortFrom(f.client, 40123)
	dialed, accepted := connectFrom(t, p, source, first)
	// Another upstream is another connection.
	toSecond, fromSecond := connectFrom(t, p, source, second)
	exchange(t, toSecond, fromSecond)
	_, err := p.here.DialTCP(within(t), source, addrPort(first.Addr()))
	wantError(t, "dialing from the same address and port", err, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE)
	exchange(t, dialed, accepted)
}

func testTCPLargeWrites(t *testing.T, p *pair, f family) {
	dialed, accepted := connect(t, p, listen(t, p, f))
	want := make([]byte, 3<<20+17)
	rand.NewChaCha8([32]byte{7}).Read(want)
	go func() {
		// An empty Write is nothing, not an end.
		dialed.Write(nil)
		dialed.Write(want)
		dialed.Close()
	}()
	got, err := io.ReadAll(accepted)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d of %d bytes, %v", len(got), len(want), err)
	}
}

func testDualStack(t *testing.T, p *pair) {
	all, err := p.there.ListenTCP(netip.MustParseAddrPort("[::]:7070"))
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	only4, err := p.there.ListenTCP(netip.MustParseAddrPort("0.0.0.0:7071"))
	if err != nil {
		t.Fatal(err)
	}
	defer only4.Close()
	packets, err := p.there.ListenUDP(netip.MustParseAddrPort("[::]:7072"))
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	if got := addrPort(all.Addr()).Port(); got != 7070 {
		t.Errorf("port is %d", got)
	}

	for _, f := range families {
		for _, listener := range []netstack.TCPListener{all, only4} {
			address := netip.AddrPortFrom(f.there, addrPort(listener.Addr()).Port())
			dialed, err := p.here.DialTCP(within(t), netip.AddrPort{}, address)
			if f.there.Is6() && listener == only4 {
				wantError(t, "dialing IPv6 where 0.0.0.0 listens", err, syscall.ECONNREFUSED)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			exchange(t, dialed, accepted)
			if got := addrPort(accepted.RemoteAddr()).Addr().Unmap(); got != f.here {
				t.Errorf("the listener sees %v, want %v", got, f.here)
			}
			dialed.Close()
			accepted.Close()
		}
		echoDatagram(t, p, packets, netip.AddrPortFrom(f.there, 7072), f.here)
	}
}
