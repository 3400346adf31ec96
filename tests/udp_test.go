package tests

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestUDP(t *testing.T) {
	w := newWorld(t)
	services.Echo(t, w.Home, "", ":19132")
	w.start(t, w.ports(t))

	for _, size := range []int{1, 512, 1200, 4000} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			client := w.dialUDP(t)
			for i := range 20 {
				if err := client.echo(strings.Repeat(string(rune('a'+i)), size)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}

	// Each client must get its own answers, and none of the others'.
	t.Run("50 clients at once", func(t *testing.T) {
		var clients sync.WaitGroup
		for number := range 50 {
			client := w.dialUDP(t)
			clients.Go(func() {
				for i := range 20 {
					if err := client.echo(fmt.Sprintf("client %d, datagram %d", number, i)); err != nil {
						t.Errorf("client %d: %v", number, err)
						return
					}
				}
			})
		}
		clients.Wait()
	})

	// A client that never stops sending, faster than anything is answered,
	// must not keep others from being served.
	t.Run("beside a flood", func(t *testing.T) {
		flood, done := w.dialUDP(t), make(chan struct{})
		var flooding sync.WaitGroup
		flooding.Go(func() {
			ticker := time.NewTicker(time.Millisecond)
			defer ticker.Stop()
			for {
				select {
				case <-done:
					return
				case <-ticker.C:
					for range 5 {
						flood.Write([]byte("flood"))
					}
				}
			}
		})
		for range 5 {
			// It is served from the same queues, which may be full of the flood.
			if err := w.dialUDP(t).echoWithin("here", 30, 300*time.Millisecond); err != nil {
				t.Error(err)
			}
		}
		close(done)
		flooding.Wait()
	})
}

// udpClient is one client of a UDP echo.
type udpClient struct {
	net.Conn
	sent map[string]bool
}

func (w *world) dialUDP(t testing.TB) udpClient {
	t.Helper()
	conn, err := w.Client.Dial(t.Context(), "udp", testnet.Endpoint+":19132")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return udpClient{conn, make(map[string]bool)}
}

// echo sends a datagram until its echo comes, as a client of a protocol over
// UDP would: a datagram may be lost, but not three.
func (c udpClient) echo(datagram string) error { return c.echoWithin(datagram, 3, 2*time.Second) }

// echoWithin is echo with a number of tries, each of which waits for a time. What
// this client never sent must not come at all.
func (c udpClient) echoWithin(datagram string, tries int, wait time.Duration) error {
	c.sent[datagram] = true
	buffer := make([]byte, 1<<16)
	var err error
	for range tries {
		if _, err = io.WriteString(c, datagram); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(wait))
		var n int
		for n, err = c.Read(buffer); err == nil; n, err = c.Read(buffer) {
			got := string(buffer[:n])
			if got == datagram {
				return nil
			}
			if !c.sent[got] {
				return fmt.Errorf("got %.40q, which another client sent", got)
			}
		}
	}
	return fmt.Errorf("waiting for the echo of %d bytes: %w", len(datagram), err)
}
