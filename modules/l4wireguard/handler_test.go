package l4wireguard

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestStream(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	port := testnet.FreePort(t, "tcp")
	w.load(`127.0.0.1:$1 {
		route {
			wireguard home:7
		}
	}`, port)

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
		"level": "info", "logger": "layer4.handlers.wireguard.connection", "network": "tcp",
		"remote": c.LocalAddr(), "remote_ip": "127.0.0.1", "upstream": "home:7", "tunnel": "wg0", "peer": "home",
		"address": "10.77.0.2:7", "bytes_read": 5, "bytes_written": 5, "reason": "client closed", "error": nil,
	})
	if _, ok := line["duration"]; !ok {
		t.Error("no duration")
	}

	// Unread data makes home's close a reset, and so the client's.
	c = w.dial(port)
	mustEcho(t, c, "hello")
	_ = c.SetLinger(0)
	c.Close()
	has(t, w.lines.next("relayed connection"), map[string]any{"level": "info", "reason": "client reset"})
}

func TestStreamUpstreamForms(t *testing.T) {
	w := newWorld(t)
	for port := range uint16(3) {
		w.serveTCP(7000+port, func(c net.Conn) { fmt.Fprintf(c, "port %d", 7000+port) })
	}
	for _, tt := range []struct {
		name, listen, handler string
		want                  string
		offset                int
	}{
		{"peer name", "127.0.0.1:$1", "wireguard home:7000", "port 7000", 0},
		{"IPv4", "127.0.0.1:$1", "wireguard 10.77.0.2:7001", "port 7001", 0},
		{"IPv6", "127.0.0.1:$1", "wireguard [fd77::2]:7002", "port 7002", 0},
		{"tunnel", "127.0.0.1:$1", "wireguard 10.77.0.2:7000 {\ntunnel wg0\n}", "port 7000", 0},
		{"placeholder", "127.0.0.1:$1", "vars port 7001\nwireguard home:{l4.vars.port}", "port 7001", 0},
		{"global placeholder", "127.0.0.1:$1", "wireguard {env.L4WIREGUARD_TEST_UPSTREAM}", "port 7002", 0},
		{"other network first", "127.0.0.1:$1", "wireguard udp/home:7000 tcp/home:7001", "port 7001", 0},
		{"second upstream", "127.0.0.1:$1", "wireguard home:9 home:7002", "port 7002", 0},
		{"range, first", "127.0.0.1:$1-$2", "wireguard home:7000-7002", "port 7000", 0},
		{"range, last", "127.0.0.1:$1-$2", "wireguard home:7000-7002", "port 7002", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("L4WIREGUARD_TEST_UPSTREAM", "home:7002")
			port := testnet.FreePort(t, "tcp")
			w.load(tt.listen+" {\nroute {\n"+tt.handler+"\n}\n}", port, port+2)
			got, err := io.ReadAll(w.dial(port + tt.offset))
			if string(got) != tt.want || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestStreamNextUpstream(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	port := testnet.FreePort(t, "tcp")
	w.load(`127.0.0.1:$1 {
		route {
			wireguard home:9 home:7
		}
	}`, port)
	c := w.dial(port)
	mustEcho(t, c, "hello")
	line := w.lines.next("dialing upstream, trying the next")
	has(t, line, map[string]any{"level": "warn", "upstream": "home:9", "next": "home:7"})
	if !strings.Contains(fmt.Sprint(line["error"]), "refused") {
		t.Errorf("error: %v", line["error"])
	}
	c.Close()
	has(t, w.lines.next("relayed connection"), map[string]any{"upstream": "home:7"})
}

// What the matchers have read reaches home as well.
func TestStreamPrefetched(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(22, echo)
	port := testnet.FreePort(t, "tcp")
	w.load(`127.0.0.1:$1 {
		@ssh ssh
		route @ssh {
			wireguard home:22
		}
	}`, port)
	mustEcho(t, w.dial(port), "SSH-2.0-test\r\n"+strings.Repeat("and more ", 1000))
}

// Home refuses: the client gets RST at once, and a line to act on.
func TestStreamRefused(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	port, echoing := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp")
	w.load(`127.0.0.1:$1 {
		route {
			wireguard home:9
		}
	}
	127.0.0.1:$2 {
		route {
			wireguard home:7
		}
	}`, port, echoing)
	mustEcho(t, w.dial(echoing), "the tunnel is up")

	start := time.Now()
	mustReset(t, w.dial(port))
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	line := w.lines.next("no upstream could be dialed")
	has(t, line, map[string]any{"level": "error", "remote_ip": "127.0.0.1", "upstreams": "[home:9]"})
	if !strings.Contains(fmt.Sprint(line["error"]), "refused") {
		t.Errorf("error: %v", line["error"])
	}
}

func TestStreamHomeAwayAndBack(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	port := testnet.FreePort(t, "tcp")
	w.load(`127.0.0.1:$1 {
		route {
			wireguard home:7 {
				dial_timeout 1s
			}
		}
	}`, port)
	// On a busy machine the first handshake takes longer than dial_timeout.
	testnet.Eventually(t, 30*time.Second, func() error {
		c := w.dial(port)
		defer c.Close()
		return echoes(c, "hello")
	})

	if err := w.home.Down(); err != nil {
		t.Fatal(err)
	}
	reset := func() (took time.Duration) {
		start := time.Now()
		c := w.dial(port)
		if _, err := io.WriteString(c, "anybody there?"); err != nil {
			t.Fatal(err)
		}
		mustReset(t, c)
		took = time.Since(start)
		if took < 900*time.Millisecond {
			t.Errorf("reset after %v, dial_timeout is 1s", took)
		}
		has(t, w.lines.next("no upstream could be dialed"), map[string]any{"level": "error", "upstreams": "[home:7]"})
		return took
	}
	// A busy machine may be late once, a wrong timeout is late each time.
	took := reset()
	for range 2 {
		if took > 3*time.Second {
			took = reset()
		}
	}
	if took > 3*time.Second {
		t.Errorf("reset after %v, dial_timeout is 1s", took)
	}

	if err := w.home.Up(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		c := w.dial(port)
		_, _ = io.WriteString(c, "welcome")
		got := make([]byte, 7)
		if _, err := io.ReadFull(c, got); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("home is back, the relay is not")
		}
	}
}

// Home vanishes from under a connection on which nobody says anything. The client
// gets RST, since there was no orderly end.
func TestStreamHomeVanishes(t *testing.T) {
	patient := relay.KeepAlive
	relay.KeepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}
	t.Cleanup(func() { relay.KeepAlive = patient })
	w := newWorld(t)
	w.serveTCP(7, echo)
	port := testnet.FreePort(t, "tcp")
	w.load("127.0.0.1:$1 {\nroute {\nwireguard home:7\n}\n}", port)
	c := w.dial(port)
	mustEcho(t, c, "hello")
	if err := w.home.Down(); err != nil {
		t.Fatal(err)
	}
	mustReset(t, c)
	has(t, w.lines.next("relayed connection"), map[string]any{"level": "warn", "reason": "upstream timed out"})
}

func TestStreamIdleTimeout(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	port := testnet.FreePort(t, "tcp")
	w.load(`127.0.0.1:$1 {
		route {
			wireguard home:7 {
				idle_timeout 500ms
				dial_timeout 15s
			}
		}
	}`, port)
	for tries := 1; ; tries++ {
		start := time.Now()
		c := w.dial(port)
		err := echoes(c, "hello")
		if err == nil {
			mustReset(t, c)
		}
		if took := time.Since(start); took < 500*time.Millisecond {
			t.Errorf("reset after %v (%v), idle_timeout is 500ms", took, err)
		}
		has(t, w.lines.next("relayed connection"), map[string]any{"level": "info", "reason": "idle timeout"})
		if err == nil {
			return
		}
		// On a busy machine the echo may come later than that.
		if tries == 10 {
			t.Fatal(err)
		}
	}
}

func TestProxyProtocol(t *testing.T) {
	w := newWorld(t)
	headers := make(chan *proxyproto.Header, 1)
	w.serveTCP(7, func(c net.Conn) {
		r := bufio.NewReader(c)
		header, err := proxyproto.Read(r)
		if err != nil {
			t.Error(err)
			return
		}
		headers <- header
		_, _ = io.Copy(c, r)
	})
	for _, version := range []byte{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			port := testnet.FreePort(t, "tcp")
			w.load(fmt.Sprintf(`127.0.0.1:$1 {
				route {
					wireguard home:7 {
						proxy_protocol v%d
					}
				}
			}`, version), port)
			c := w.dial(port)
			mustEcho(t, c, "hello")
			header := <-headers
			if header.Version != version || header.SourceAddr.String() != c.LocalAddr().String() || header.DestinationAddr.String() != c.RemoteAddr().String() {
				t.Errorf("%+v, from %v to %v", header, c.LocalAddr(), c.RemoteAddr())
			}
		})
	}

	// A client that is a proxy itself: home is told the true client.
	t.Run("chained", func(t *testing.T) {
		port := testnet.FreePort(t, "tcp")
		w.load(`127.0.0.1:$1 {
			@pp proxy_protocol
			route @pp {
				proxy_protocol {
					allow 127.0.0.0/8
				}
				wireguard home:7 {
					proxy_protocol v2
				}
			}
		}`, port)
		c := w.dial(port)
		if _, err := io.WriteString(c, "PROXY TCP4 203.0.113.9 198.51.100.1 4711 22\r\n"); err != nil {
			t.Fatal(err)
		}
		mustEcho(t, c, "hello")
		if header := <-headers; header.SourceAddr.String() != "203.0.113.9:4711" {
			t.Errorf("%+v", header)
		}
		c.Close()
		for {
			line := w.lines.next("relayed connection")
			if line["remote"] == "203.0.113.9:4711" {
				has(t, line, map[string]any{"remote_ip": "203.0.113.9"})
				break
			}
		}
	})
}

// A reload, with another idle_timeout to make it a change, interrupts neither
// TCP connections nor UDP flows.
func TestReloadKeepsConnections(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	w.serveUDP(7, func(datagram []byte, from net.Addr) []byte { return []byte(from.String()) })
	tcp, udp := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "udp")
	servers := `127.0.0.1:$1 udp/127.0.0.1:$2 {
		route {
			wireguard home:7 {
				idle_timeout %s
			}
		}
	}`
	w.load(fmt.Sprintf(servers, "1m"), tcp, udp)

	c := w.dial(tcp)
	mustEcho(t, c, "before")
	u := w.dialUDP(udp)
	_ = u.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(u, "before"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := u.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	seen := string(buf[:n])

	for i := range 5 {
		w.load(fmt.Sprintf(servers, fmt.Sprintf("%dm", i+2)), tcp, udp)
		mustEcho(t, c, strings.Repeat("after ", i+1))
		mustExchange(t, u, "after", seen)
	}
	if flows := relay.Flows.Len(); flows != 1 {
		t.Errorf("%d flows", flows)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("after half a close: %q, %v", rest, err)
	}
}

// A configuration that fails to load costs nobody anything.
func TestFailedReload(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	port := testnet.FreePort(t, "tcp")
	w.load("127.0.0.1:$1 {\nroute {\nwireguard home:7\n}\n}", port)
	c := w.dial(port)
	mustEcho(t, c, "before")
	if err := w.tryLoad("127.0.0.1:$1 {\nroute {\nwireguard 192.0.2.1:7\n}\n}", port); err == nil || !strings.Contains(err.Error(), "192.0.2.1 is in no peer's allowed_ips") {
		t.Fatalf("loaded: %v", err)
	}
	mustEcho(t, c, "after")
	mustEcho(t, w.dial(port), "after")
}

func TestStreamsLeaveNothing(t *testing.T) {
	connections := 1000
	if testing.Short() {
		connections = 100
	}
	w := newWorld(t)
	w.serveTCP(7, echo)
	port := testnet.FreePort(t, "tcp")
	w.load("127.0.0.1:$1 {\nroute {\nwireguard home:7\n}\n}", port)
	warm := w.dial(port)
	mustEcho(t, warm, "warm")
	warm.Close()
	w.lines.next("relayed connection") // the log's own goroutine runs by now

	settles := func(want int) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for runtime.NumGoroutine() > want {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				t.Fatalf("%d goroutines left, %d at the start:\n%s", runtime.NumGoroutine(), want, stacks[:runtime.Stack(stacks, true)])
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	before := runtime.NumGoroutine()
	var failed atomic.Int32
	work := make(chan int)
	done := make(chan struct{})
	for range 50 {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range work {
				c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
				if err != nil {
					failed.Add(1)
					continue
				}
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				_, err = io.WriteString(c, "ping")
				if err == nil {
					_, err = io.ReadFull(c, make([]byte, 4))
				}
				if err != nil {
					failed.Add(1)
				}
				if i%3 == 0 {
					_ = c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
			}
		}()
	}
	for i := range connections {
		work <- i
	}
	close(work)
	for range 50 {
		<-done
	}
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d connections failed", n, connections)
	}
	// Apart from the goroutines: what an earlier test left was counted before,
	// and hides as many of a stream's once it has ended.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := relay.Streams.Wait(ctx); err != nil {
		t.Errorf("%d streams left", relay.Streams.Len())
	}
	settles(before)
}
