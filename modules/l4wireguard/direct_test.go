package l4wireguard

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestDirect relays to programs of this host.
func TestDirect(t *testing.T) {
	w := newWorld(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, echo)
	port, closed := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp")
	w.load(fmt.Sprintf("127.0.0.1:$1 {\nroute {\nwireguard 127.0.0.1:%d localhost:%d {\ndirect\n}\n}\n}", closed, ln.Addr().(*net.TCPAddr).Port), port)

	c := w.dial(port)
	mustEcho(t, c, "hello")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("after half a close: %q, %v", rest, err)
	}
	line := w.lines.next("relayed connection")
	has(t, line, map[string]any{
		"remote": c.LocalAddr(), "upstream": fmt.Sprintf("localhost:%d", ln.Addr().(*net.TCPAddr).Port),
		"address": ln.Addr(), "bytes_read": 5, "bytes_written": 5,
	})
	if _, ok := line["tunnel"]; ok {
		t.Errorf("the line names a tunnel: %v", line)
	}
}

// TestDirectDatagrams has a client that goes on sending while the program is not
// there, which stops the whole server of caddy-l4's proxy, and reloads.
func TestDirectDatagrams(t *testing.T) {
	w := newWorld(t)
	port, service := testnet.FreePort(t, "udp"), testnet.FreePort(t, "udp")
	servers := fmt.Sprintf("udp/127.0.0.1:$1 {\nroute {\nwireguard 127.0.0.1:%d {\ndirect\nidle_timeout %%s\n}\n}\n}", service)
	w.load(fmt.Sprintf(servers, "1m"), port)
	stop := flood(t, port, []byte("to nobody"))
	// Each datagram that is refused may end the server, one a moment later.
	time.Sleep(500 * time.Millisecond)

	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: service})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			_, from, err := socket.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = socket.WriteToUDPAddrPort([]byte(from.String()), from)
		}
	}()
	c := w.dialUDP(port)
	ask := func() string {
		t.Helper()
		buf := make([]byte, 100)
		for range 10 {
			_, _ = io.WriteString(c, "who am I?")
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if n, err := c.Read(buf); err == nil {
				return string(buf[:n])
			}
		}
		t.Fatal("no answer")
		return ""
	}
	seen := ask()
	stop()
	if !strings.HasPrefix(seen, "127.0.0.1:") {
		t.Errorf("the program sees %s", seen)
	}
	for i := range 3 {
		w.load(fmt.Sprintf(servers, fmt.Sprintf("%dm", i+2)), port)
		if now := ask(); now != seen {
			t.Errorf("after reload %d the program sees %s, before %s: the flow was not kept", i, now, seen)
		}
	}
	if flows := relay.Flows.Len(); flows > 2 {
		t.Errorf("%d flows", flows)
	}
}
