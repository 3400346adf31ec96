package l4wireguard

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// There is room for so many connections, those for which home is still being dialed
// among them. Who comes when there is none is reset at once.
func TestStreamsNoRoom(t *testing.T) {
	before := relay.Streams.Max
	t.Cleanup(func() { relay.Streams.Max = before }) // when nothing relays any more
	relay.Streams.Max = 2
	w := newWorld(t)
	w.serveTCP(7, echo)
	port := testnet.FreePort(t, "tcp")
	w.load("127.0.0.1:$1 {\nroute {\nwireguard home:7 {\ndial_timeout 60s\n}\n}\n}", port)
	first := w.dial(port)
	mustEcho(t, first, "the tunnel is up")

	if err := w.home.Down(); err != nil {
		t.Fatal(err)
	}
	waiting := w.dial(port)
	testnet.Eventually(t, 20*time.Second, func() error {
		release, err := relay.Streams.Hold()
		if errors.Is(err, relay.ErrTooManyStreams) {
			return nil
		}
		release()
		return errors.New("a connection whose dial has begun takes no room")
	})
	refused := relay.Streams.Refused()
	full := func() error {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if errors.Is(err, syscall.ECONNRESET) { // as fast as that
			return nil
		}
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("got %v, want a reset", err)
		}
		return nil
	}
	for range 3 * lineBurst {
		if err := full(); err != nil {
			t.Fatal(err)
		}
	}
	line := w.lines.next("refused connection")
	has(t, line, map[string]any{"level": "error", "network": "tcp", "remote_ip": "127.0.0.1"})
	if got := fmt.Sprint(line["error"]); !strings.Contains(got, "too many TCP connections") {
		t.Errorf("error: %s", got)
	}
	if got := relay.Streams.Refused() - refused; got != 3*lineBurst {
		t.Errorf("%d were refused, want %d", got, 3*lineBurst)
	}

	// Those who were there first lose nothing by it.
	if err := w.home.Up(); err != nil {
		t.Fatal(err)
	}
	_ = waiting.SetDeadline(time.Now().Add(60 * time.Second))
	mustEcho(t, waiting, "had to wait")
	first.Close()
	testnet.Eventually(t, 20*time.Second, func() error {
		c := w.dial(port)
		defer c.Close()
		_, err := io.WriteString(c, "room again")
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, len("room again")))
		}
		return err
	})
}
