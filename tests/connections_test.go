package tests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestConnections opens and closes many short connections. None may fail, and
// afterwards the relay must be as it was: no goroutine more, and no descriptor but
// those that wait to be used.
func TestConnections(t *testing.T) {
	w := newWorld(t)
	services.Echo(t, w.Home, ":7000", "")
	w.start(t, w.ports(t))

	connect := func(n int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn, err := w.Client.Dial(ctx, "tcp", testnet.Endpoint+":7000")
		if err != nil {
			return err
		}
		defer conn.Close()
		return echoOnce(conn, fmt.Sprintf("connection %d", n))
	}

	// What is made at first use is no leak.
	for n := range 50 {
		if err := connect(n); err != nil {
			t.Fatal(err)
		}
	}
	before := settle(t, w.relay)

	t.Run("10000 one after the other", func(t *testing.T) {
		for n := range 10_000 {
			if err := connect(n); err != nil {
				t.Fatalf("connection %d: %v", n, err)
			}
		}
		before.expectAgain(t, w.relay)
	})

	t.Run("500 at once", func(t *testing.T) {
		var connections sync.WaitGroup
		for n := range 500 {
			connections.Go(func() {
				if err := connect(n); err != nil {
					t.Errorf("connection %d: %v", n, err)
				}
			})
		}
		connections.Wait()
		before.expectAgain(t, w.relay)
	})
}

// TestMoreConnectionsThanDescriptors has strangers open more connections than the
// relay has descriptors for, and keep them. Once it could accept none, a port of
// layer4 would never do so again.
func TestMoreConnectionsThanDescriptors(t *testing.T) {
	const descriptors = 1024
	w := newWorld(t)
	services.Echo(t, w.Home, ":7000", "")
	w.relay.Surround("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, descriptors), "sh")
	w.start(t, w.ports(t))
	echo := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := w.Client.Dial(ctx, "tcp", testnet.Endpoint+":7000")
		if err != nil {
			return err
		}
		defer conn.Close()
		return echoOnce(conn, "hello")
	}
	testnet.Eventually(t, 60*time.Second, echo)

	mark := w.relay.Log.Len()
	var strangers []net.Conn
	for range descriptors + descriptors/4 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		conn, err := w.Client.Dial(ctx, "tcp", testnet.Endpoint+":7000")
		cancel()
		if errors.Is(err, syscall.ECONNRESET) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		strangers = append(strangers, conn)
	}
	for _, conn := range strangers {
		conn.Close()
	}
	testnet.Eventually(t, 30*time.Second, echo)
	w.relay.WaitLog(t, mark, `refused connection.*too many TCP connections`, 20*time.Second)
}

// TestIPv6Client comes by IPv6 to a home whose tunnel has only IPv4.
func TestIPv6Client(t *testing.T) {
	w := newWorld(t)
	services.Echo(t, w.Home, ":7000", "")
	w.start(t, w.ports(t))
	conn, err := w.Client.Dial(t.Context(), "tcp", "["+testnet.RelayIP6+"]:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := echoOnce(conn, "by IPv6"); err != nil {
		t.Error(err)
	}
}

// echoOnce sends a message, ends its side, and expects the message and then
// the end.
func echoOnce(conn net.Conn, message string) error {
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, message); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != message {
		err = fmt.Errorf("got %q, sent %q", got, message)
	}
	return err
}

// footprint is what a relay holds while nobody uses it.
type footprint struct {
	goroutines  int
	descriptors []string
	profile     string
}

func measure(t testing.TB, relay *testnet.Relay) footprint {
	t.Helper()
	var f footprint
	f.goroutines, f.profile = relay.Goroutines(t)
	f.descriptors = relay.Descriptors(t)
	return f
}

// settle waits until the relay's footprint stays the same, and returns it.
func settle(t testing.TB, relay *testnet.Relay) footprint {
	t.Helper()
	last, same := measure(t, relay), 0
	testnet.Eventually(t, 20*time.Second, func() error {
		now := measure(t, relay)
		// The connection that has asked may be open still, or not any more.
		more := len(now.descriptors) - len(last.descriptors)
		if now.goroutines == last.goroutines && -1 <= more && more <= 1 {
			same++
		} else {
			same = 0
		}
		last = now
		if same < 10 {
			return fmt.Errorf("the relay's footprint still changes: %d goroutines, %d descriptors",
				now.goroutines, len(now.descriptors))
		}
		return nil
	})
	return last
}

// spareSockets is by how many the sockets differ that the kernel's stack keeps
// for dials, between half a stock and a whole one.
const spareSockets = 16

// expectAgain waits until the relay holds no more than before.
func (f footprint) expectAgain(t testing.TB, relay *testnet.Relay) {
	t.Helper()
	var now footprint
	deadline := time.Now().Add(20 * time.Second)
	for {
		now = measure(t, relay)
		if now.goroutines <= f.goroutines && len(now.descriptors) <= len(f.descriptors)+spareSockets {
			return
		}
		if time.Now().After(deadline) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if now.goroutines > f.goroutines {
		t.Errorf("%d goroutines, before %d:\n%s\nbefore:\n%s", now.goroutines, f.goroutines, now.profile, f.profile)
	}
	if len(now.descriptors) > len(f.descriptors)+spareSockets {
		slices.Sort(now.descriptors)
		slices.Sort(f.descriptors)
		t.Errorf("%d descriptors, before %d:\n%q\nbefore:\n%q",
			len(now.descriptors), len(f.descriptors), now.descriptors, f.descriptors)
	}
}

// heapMore is what a relay's heap has more after it was in full use, with room to
// spare: 12 MiB have been seen, and wireguard-go's buffers have 64 KiB each.
const heapMore = 20 << 20

// heapInUse is what a relay's heap has after collections: what is kept for the next
// use goes with the second.
func heapInUse(t testing.TB, relay *testnet.Relay) (bytes int64) {
	t.Helper()
	var match []string
	for range 3 {
		profile := relay.Admin(t, "/debug/pprof/heap?gc=1&debug=1")
		match = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)`).FindStringSubmatch(profile)
	}
	if match == nil {
		t.Fatal("the relay's heap profile does not say what is in use")
	}
	bytes, err := strconv.ParseInt(match[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
