package wgbind

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestMain(m *testing.M) { testnet.MainWithoutLeaks(m) }

func open(t *testing.T, b *Bind, port uint16) ([]conn.ReceiveFunc, uint16) {
	t.Helper()
	receives, actual, err := b.Open(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return receives, actual
}

// reader is the other end of the line.
func reader(t *testing.T) *net.UDPConn {
	t.Helper()
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return other
}

func endpointOf(t *testing.T, b *Bind, other *net.UDPConn) conn.Endpoint {
	t.Helper()
	endpoint, err := b.ParseEndpoint(other.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return endpoint
}

func message(kind byte, size int, indexAt int, index uint32) []byte {
	m := make([]byte, size)
	m[0] = kind
	binary.LittleEndian.PutUint32(m[indexAt:], index)
	return m
}

func mustRead(t *testing.T, other *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	other.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 2048)
	n, from, err := other.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], from
}

func TestPrepareOpensBeside(t *testing.T) {
	b := New()
	_, first := open(t, b, 0)
	second, err := b.Prepare(0)
	if err != nil {
		t.Fatal(err)
	}
	if first == second || second == 0 {
		t.Fatalf("ports %d and %d", first, second)
	}
	if err := b.Close(); err != nil { // as wireguard-go does before it opens anew
		t.Fatal(err)
	}
	if _, got := open(t, b, second); got != second {
		t.Fatalf("port %d, want %d", got, second)
	}
	other := reader(t)
	if err := b.Send([][]byte{[]byte("hello")}, endpointOf(t, b, other)); err != nil {
		t.Fatal(err)
	}
	if _, from := mustRead(t, other); from.Port() != second {
		t.Errorf("it speaks from %d, want %d", from.Port(), second)
	}
}

func TestPrepareBusyPort(t *testing.T) {
	taken := reader(t)
	b := New()
	if _, err := b.Prepare(uint16(taken.LocalAddr().(*net.UDPAddr).Port)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
}

func TestDiscardFreesThePort(t *testing.T) {
	b := New()
	port, err := b.Prepare(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Discard(); err != nil {
		t.Fatal(err)
	}
	if again, err := b.Prepare(port); err != nil || again != port {
		t.Fatalf("port %d: %v", again, err)
	}
	if err := b.Discard(); err != nil {
		t.Fatal(err)
	}
}

func TestInitiationIsSentAgainUntilAnswered(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer []byte
	}{
		{"by a response", message(responseType, responseSize, 8, 42)},
		{"by a cookie", message(cookieType, cookieSize, 4, 42)},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := New()
			receives, _ := open(t, b, 0)
			other := reader(t)
			want := message(initiationType, initiationSize, 4, 42)
			to := other.LocalAddr().(*net.UDPAddr).AddrPort()
			if since := b.UnansweredSince(to); !since.IsZero() {
				t.Errorf("unanswered since %v, before anything was sent", since)
			}
			if err := b.Send([][]byte{want}, endpointOf(t, b, other)); err != nil {
				t.Fatal(err)
			}
			for copies := range 2 {
				if got, _ := mustRead(t, other); !bytes.Equal(got, want) {
					t.Fatalf("copy %d is another datagram", copies)
				}
			}
			b.resender.mu.Lock()
			waiting := len(b.resender.waiting)
			b.resender.mu.Unlock()
			if waiting != 1 {
				t.Fatalf("%d initiations wait for an answer", waiting)
			}
			if since := b.UnansweredSince(to); since.IsZero() {
				t.Error("not known to be unanswered")
			}
			answerThrough(t, receives, other, b, test.answer)
			if since := b.UnansweredSince(to); !since.IsZero() {
				t.Errorf("unanswered since %v, though answered", since)
			}
			b.resender.mu.Lock()
			defer b.resender.mu.Unlock()
			if len(b.resender.waiting) != 0 {
				t.Error("it is answered and still waits")
			}
		})
	}
}

// answerThrough sends an answer and receives it as wireguard-go would, which is told where
// it came from.
func answerThrough(t *testing.T, receives []conn.ReceiveFunc, other *net.UDPConn, b *Bind, answer []byte) conn.Endpoint {
	t.Helper()
	if err := b.Send([][]byte{[]byte("where am I?")}, endpointOf(t, b, other)); err != nil {
		t.Fatal(err)
	}
	var from netip.AddrPort
	for packet := []byte(nil); string(packet) != "where am I?"; {
		packet, from = mustRead(t, other)
	}
	if _, err := other.WriteToUDPAddrPort(answer, from); err != nil {
		t.Fatal(err)
	}
	packets, sizes, endpoints := make([][]byte, b.BatchSize()), make([]int, b.BatchSize()), make([]conn.Endpoint, b.BatchSize())
	for i := range packets {
		packets[i] = make([]byte, 2048)
	}
	// The IPv4 socket is the first one.
	if n, err := receives[0](packets, sizes, endpoints); err != nil || n == 0 {
		t.Fatalf("%d packets: %v", n, err)
	}
	return endpoints[0]
}

func TestOnlyInitiationsAreSentAgain(t *testing.T) {
	b := New()
	open(t, b, 0)
	other := reader(t)
	for _, packet := range [][]byte{
		message(responseType, responseSize, 8, 1),
		message(4, initiationSize, 4, 1),
		make([]byte, 1),
	} {
		if err := b.Send([][]byte{packet}, endpointOf(t, b, other)); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.resender.waiting) != 0 {
		t.Errorf("%d wait", len(b.resender.waiting))
	}
}

// An initiation that is diverted goes to the other address, and when nothing answers there
// to its own. The next one is not diverted.
func TestDivert(t *testing.T) {
	b := New()
	open(t, b, 0)
	own, other := reader(t), reader(t)
	address := func(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }
	if err := b.Divert(address(own), address(other)); err != nil {
		t.Fatal(err)
	}
	data := message(4, 32, 4, 7)
	first, second := message(initiationType, initiationSize, 4, 42), message(initiationType, initiationSize, 4, 43)
	for _, m := range [][]byte{data, first, second} {
		if err := b.Send([][]byte{m}, endpointOf(t, b, own)); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := mustRead(t, other); !bytes.Equal(got, first) {
		t.Error("the other address gets something else than the first initiation")
	}
	if got, _ := mustRead(t, own); !bytes.Equal(got, data) {
		t.Error("its own address does not get the data")
	}
	if got, _ := mustRead(t, own); !bytes.Equal(got, second) {
		t.Error("its own address does not get the second initiation at once")
	}
	for copies := 0; ; copies++ {
		got, _ := mustRead(t, own)
		if bytes.Equal(got, first) {
			break
		}
		if !bytes.Equal(got, second) || copies > 10 {
			t.Fatal("its own address does not get the first initiation")
		}
	}
}

// A peer that answers where its initiation was diverted to has moved: what was on its way
// from the former address does not take it back. If it answers there, it has not.
func TestDivertedIsAnswered(t *testing.T) {
	for _, moves := range []bool{true, false} {
		b := New()
		receives, _ := open(t, b, 0)
		own, other := reader(t), reader(t)
		address := func(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }
		if err := b.Divert(address(own), address(other)); err != nil {
			t.Fatal(err)
		}
		if err := b.Send([][]byte{message(initiationType, initiationSize, 4, 42)}, endpointOf(t, b, own)); err != nil {
			t.Fatal(err)
		}
		data, response := message(transportType, transportMin, 4, 7), message(responseType, responseSize, 8, 42)
		from, want := own, own
		if moves {
			from, want = other, other
		}
		if got := answerThrough(t, receives, own, b, data); got.DstToString() != address(own).String() {
			t.Errorf("before, data is from %s, want %s", got.DstToString(), address(own))
		}
		if got := answerThrough(t, receives, from, b, response); got.DstToString() != address(from).String() {
			t.Errorf("the response is from %s, want %s", got.DstToString(), address(from))
		}
		if got := answerThrough(t, receives, own, b, data); got.DstToString() != address(want).String() {
			t.Errorf("then data is from %s, want %s", got.DstToString(), address(want))
		}
		b.resender.mu.Lock()
		for from, m := range b.resender.moves {
			m.until = time.Now()
			b.resender.moves[from] = m
		}
		b.resender.mu.Unlock()
		if got := answerThrough(t, receives, own, b, data); got.DstToString() != address(own).String() {
			t.Errorf("in the end data is from %s, want %s", got.DstToString(), address(own))
		}
	}
}

// A response goes to where the initiation came from, wherever the peer has been heard
// since.
func TestResponseGoesToTheCaller(t *testing.T) {
	b := New()
	receives, port := open(t, b, 0)
	caller, heard := reader(t), reader(t)
	copier := reader(t)
	for _, from := range []*net.UDPConn{caller, copier} {
		answerThrough(t, receives, from, b, message(initiationType, initiationSize, 4, 42))
	}
	response, other := message(responseType, responseSize, 8, 42), message(responseType, responseSize, 8, 43)
	for _, m := range [][]byte{response, other} {
		if err := b.Send([][]byte{m}, endpointOf(t, b, heard)); err != nil {
			t.Fatal(err)
		}
	}
	if got, from := mustRead(t, caller); !bytes.Equal(got, response) || from.Port() != port {
		t.Errorf("the caller gets %x from %s", got[:1], from)
	}
	if got, _ := mustRead(t, heard); !bytes.Equal(got, other) {
		t.Error("where the peer was heard, it gets the response to the caller")
	}
}
