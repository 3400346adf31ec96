package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// send measures a traffic with a relay of the test's own.
func send(t *testing.T, w *World, traffic Traffic) (*result, error) {
	t.Helper()
	if err := traffic.complete(); err != nil {
		t.Fatal(err)
	}
	return (&run{World: w, traffic: &traffic, seed: 1}).measure(t.Context())
}

// worldWithoutRelay is a world whose relay can reach home through the router,
// and passes nothing on by itself.
func worldWithoutRelay(t *testing.T) *World {
	t.Helper()
	w := enter(t, []Contender{direct{}})[0].world
	w.Relay.NFT(t, "delete table ip direct")
	return w
}

// A relay that changes data, or ends before they are there, has not carried an
// upload.
func TestUploadNotices(t *testing.T) {
	testnet.Need(t, "ip", "nft", "iperf3")
	w := worldWithoutRelay(t)
	for _, test := range []struct {
		name, from, want string
		relay            func(client, home *net.TCPConn)
	}{
		{"a byte changed", "client", "have changed", func(client, home *net.TCPConn) {
			flip(home, client)
			home.CloseWrite()
			io.Copy(client, home)
		}},
		{"a byte changed", "home", "have changed", func(client, home *net.TCPConn) {
			go io.Copy(home, client)
			flip(client, home)
		}},
		{"no half-close", "client", "home's sum", func(client, home *net.TCPConn) {
			io.Copy(home, client)
		}},
		{"the end missing", "home", "after 1000 of 1048576 bytes", func(client, home *net.TCPConn) {
			go io.Copy(home, client)
			io.CopyN(client, home, 1000)
		}},
	} {
		t.Run(test.name+", from "+test.from, func(t *testing.T) {
			services.Serve(t, w.Relay, ":"+strconv.Itoa(uploadPort), func(client net.Conn) {
				home, err := w.Relay.Dial(t.Context(), "tcp", net.JoinHostPort(testnet.RouterIP, strconv.Itoa(uploadPort)))
				if err != nil {
					t.Error(err)
					return
				}
				defer home.Close()
				test.relay(client.(*net.TCPConn), home.(*net.TCPConn))
			})
			_, err := send(t, w, Traffic{Kind: kindUpload, From: test.from, MiB: 1})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// flip copies a stream and changes a byte of its data, after the order.
func flip(to io.Writer, from io.Reader) {
	io.CopyN(to, from, int64(binary.Size(order{})))
	var b [1]byte
	io.ReadFull(from, b[:])
	b[0]++
	to.Write(b[:])
	io.Copy(to, from)
}

func TestDatagramsNotice(t *testing.T) {
	testnet.Need(t, "ip", "nft", "iperf3")
	w := worldWithoutRelay(t)
	traffic := Traffic{Kind: kindUDP, Seconds: 1, Rate: 50}
	if _, err := send(t, w, traffic); err == nil || !strings.Contains(err.Error(), "nothing came back") {
		t.Errorf("without a relay: %v", err)
	}

	// Of the first ten every fifth is lost, and the others come twice. Then
	// nothing comes any more.
	relay := w.Relay.ListenPacket(t, "udp", ":"+strconv.Itoa(datagramPort))
	var change atomic.Bool
	go func() {
		buf := make([]byte, largestDatagram)
		for {
			n, from, err := relay.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if change.Load() {
				buf[n-1]++
			}
			if number := binary.BigEndian.Uint64(buf); number%5 > 0 && number < 10 {
				relay.WriteToUDPAddrPort(buf[:n], from)
				relay.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	}()
	var found *result
	// On a busy machine answers may be too late to count, but not each time.
	for range 3 {
		var err error
		if found, err = send(t, w, traffic); err != nil {
			t.Fatal(err)
		}
		if found.metrics[metricLostDatagrams] <= 84 {
			break
		}
	}
	if lost := found.metrics[metricLostDatagrams]; lost != 84 {
		t.Errorf("%g %% are lost, want 84", lost)
	}
	// Whenever the 8 answers come, the 980 ms of sending have 9 gaps.
	if gap := found.metrics[metricGap]; gap < 980/9 {
		t.Errorf("the longest gap is %g ms", gap)
	}
	change.Store(true)
	if _, err := send(t, w, traffic); err == nil || !strings.Contains(err.Error(), "that was not sent") {
		t.Errorf("changed datagrams: %v", err)
	}
}

func TestAnswers(t *testing.T) {
	a := answers{seen: make([]bool, 300), size: 20}
	for _, test := range []struct {
		name   string
		answer []byte
		number int
		isNew  bool
		want   string
	}{
		{"first", datagram(299, 20), 299, true, ""},
		{"late", datagram(3, 20), 3, true, ""},
		{"twice", datagram(299, 20), 299, false, ""},
		{"never sent", datagram(300, 20), 0, false, "not sent"},
		{"short", datagram(4, 19), 0, false, "not sent"},
		{"without a number", []byte{1}, 0, false, "not sent"},
		{"another's filling", append(datagram(4, 8), bytes.Repeat([]byte{5}, 12)...), 0, false, "not sent"},
	} {
		number, isNew, err := a.take(test.answer)
		if number != test.number || isNew != test.isNew || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %d, %t, %v", test.name, number, isNew, err)
		}
	}
}

func TestIdleNotices(t *testing.T) {
	testnet.Need(t, "ip", "nft", "iperf3")
	w := worldWithoutRelay(t)
	traffic := Traffic{Kind: kindIdle, Seconds: 1, Connections: 60}
	if _, err := send(t, w, traffic); err == nil || !strings.Contains(err.Error(), "60 of 60 connections could not be opened") {
		t.Errorf("without a relay: %v", err)
	}

	// A relay that forgets every third.
	var count atomic.Int64
	services.Serve(t, w.Relay, ":"+strconv.Itoa(askPort), func(client net.Conn) {
		forgotten := count.Add(1)%3 == 0
		io.CopyN(client, client, 1)
		if !forgotten {
			io.Copy(client, client)
		}
	})
	found, err := send(t, w, traffic)
	if err != nil {
		t.Fatal(err)
	}
	if lost := found.metrics[metricLost]; lost != 20 {
		t.Errorf("%g connections are lost, want 20", lost)
	}
	if _, ok := found.metrics[metricPerConnection]; ok {
		t.Error("a relay without a process has memory")
	}
}

// Whoever ends a measurement does not wait for it.
func TestTrafficEnds(t *testing.T) {
	testnet.Need(t, "ip", "nft", "iperf3")
	w := enter(t, []Contender{direct{}})[0].world
	for _, kind := range []string{kindUpload, kindUDP, kindIdle} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		traffic := Traffic{Kind: kind, Seconds: 3600, MiB: 1 << 20}
		if err := traffic.complete(); err != nil {
			t.Fatal(err)
		}
		if _, err := (&run{World: w, traffic: &traffic}).measure(ctx); err == nil {
			t.Errorf("%s has been ended before it began, and has figures", kind)
		}
	}
}
