package tests

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestHomeAway has the relay serve before home has ever been there, and takes
// home away again later. Clients are told so in time, the log says why, and
// nobody has to do anything when home is back.
func TestHomeAway(t *testing.T) {
	t.Parallel() // they mostly wait
	t.Run("TCP", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		services.Echo(t, w.Home, ":7000", "")
		w.relay.Start(t, replace(t, w.ports(t), "dial_timeout 20s", "dial_timeout 2s"))

		expectAway := func() {
			t.Helper()
			mark := w.relay.Log.Len()
			begin := time.Now()
			conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(begin.Add(15 * time.Second))
			// An orderly end would say that home has nothing to say.
			_, err = conn.Read(make([]byte, 1))
			took := time.Since(begin)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client got %v, want a reset", err)
			}
			// After dial_timeout; later is a busy machine.
			if took < 1500*time.Millisecond || took > 8*time.Second {
				t.Errorf("the client was told after %v, want 2s", took)
			}
			w.relay.WaitLog(t, mark, `(?i)error.*home.*(called|heard|handshake)`, 5*time.Second)
		}
		expectBack := func() {
			t.Helper()
			testnet.Eventually(t, 20*time.Second, func() error {
				conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
				if err != nil {
					return err
				}
				defer conn.Close()
				return echoOnce(conn, "back")
			})
		}
		expectAway()
		w.home.Up(t)
		expectBack()
		w.home.Down(t)
		expectAway()
		w.home.Up(t)
		expectBack()
	})

	t.Run("HTTPS", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		testnet.Need(t, "curl")
		services.StartApache(t, w.Home, w.private)
		w.relay.Start(t, w.example(t))
		const url = "https://" + testnet.Domain + "/"

		expectAway := func() {
			t.Helper()
			mark := w.relay.Log.Len()
			if got := w.curl(t, "http2", url); got.status != http.StatusBadGateway {
				t.Errorf("got status %d, want 502", got.status)
			}
			w.relay.WaitLog(t, mark, `(?i)error.*home.*(called|heard|handshake).*"status": ?502`, 5*time.Second)
		}
		expectBack := func() {
			t.Helper()
			testnet.Eventually(t, 20*time.Second, func() error {
				if got := w.curl(t, "http2", url); got.status != http.StatusOK {
					return errors.New(http.StatusText(got.status))
				}
				return nil
			})
		}
		expectAway()
		w.home.Up(t)
		expectBack()
		w.home.Down(t)
		// The first request may go out on a connection that is still open, and
		// only time shows that nobody is at its other end.
		if got := w.curl(t, "http2", url); got.status != http.StatusBadGateway {
			t.Errorf("got status %d when home vanished, want 502", got.status)
		}
		expectAway()
		w.home.Up(t)
		expectBack()
	})
}

// TestRefused asks for a port that nobody listens on at home: the client is
// told at once, as if it had asked home itself.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	w.start(t, replace(t, w.ports(t), "dial_timeout 20s", "dial_timeout 60s"))
	refused := func() (took time.Duration) {
		t.Helper()
		begin := time.Now()
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		_, err = io.ReadAll(conn)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client got %v, want a reset", err)
		}
		return time.Since(begin)
	}
	// One that is slow each time is not slow because the machine is busy.
	took := refused()
	for try := 1; try < 3 && took > 1500*time.Millisecond; try++ {
		took = refused()
	}
	if took > 1500*time.Millisecond {
		t.Errorf("the client was told after %v, each of three times", took)
	}
	w.relay.WaitLog(t, 0, `home.*refused`, 5*time.Second)
}

// TestKilledRelay kills the relay under its clients. What they have got so far
// must not look like all there is.
func TestKilledRelay(t *testing.T) {
	expectReset := func(t *testing.T, conn net.Conn) {
		t.Helper()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if rest, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client got %d more bytes and %v, want a reset", len(rest), err)
		}
	}
	for _, stack := range []string{"kernel", "gvisor"} {
		t.Run("relayed, "+stack, func(t *testing.T) {
			const said = "the first half"
			w := newWorld(t)
			held := make(chan struct{})
			services.Serve(t, w.Home, ":7000", func(conn net.Conn) {
				io.WriteString(conn, said)
				<-held
			})
			t.Cleanup(func() { close(held) })
			w.start(t, w.portsOn(t, stack))
			conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.ReadFull(conn, make([]byte, len(said))); err != nil {
				t.Fatal(err)
			}
			w.relay.Kill()
			expectReset(t, conn)
		})
	}
	t.Run("dialing", func(t *testing.T) {
		w := newWorld(t)
		w.relay.Start(t, w.ports(t))
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7001")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		testnet.Eventually(t, 10*time.Second, func() error {
			if _, profile := w.relay.Goroutines(t); !strings.Contains(profile, "Handler).dialStream") {
				return errors.New("the relay does not dial home")
			}
			return nil
		})
		w.relay.Kill()
		expectReset(t, conn)
	})
}
