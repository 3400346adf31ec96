package l4wireguard

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestDatagrams(t *testing.T) {
	w := newWorld(t)
	w.serveUDP(7, echoDatagram)
	port := testnet.FreePort(t, "udp")
	w.load(`udp/127.0.0.1:$1 {
		idle_timeout 1s
		route {
			wireguard home:7 {
				idle_timeout 4s
			}
		}
	}`, port)
	c := w.dialUDP(port)
	total, count := 0, 0
	for _, size := range []int{1, 100, 1200, 4000, 8999} {
		text := strings.Repeat("u", size)
		if size == 1 {
			mustExchange(t, c, text, text) // waits for the tunnel
			continue
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		mustEcho(t, c, text)
		total, count = total+size, count+1
	}

	// The flow outlives the server's own idea of idle. A busy machine has the rest
	// of the flow's for the echo.
	time.Sleep(1200 * time.Millisecond)
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	mustEcho(t, c, "still here")
	line := w.lines.next("relayed datagrams")
	has(t, line, map[string]any{
		"level": "info", "network": "udp", "remote": c.LocalAddr(), "remote_ip": "127.0.0.1", "upstream": "home:7",
		"tunnel": "wg0", "peer": "home", "address": "10.77.0.2:7", "reason": "idle timeout",
	})
	if got := line["bytes_written"].(float64); got < float64(total) {
		t.Errorf("counted %v of %d bytes", got, total)
	}
	if relay.Flows.Len() != 0 {
		t.Error("the flow is still in the table")
	}

	// And the next datagram opens another.
	mustExchange(t, c, "again", "again")
}

// Empty datagrams are datagrams.
func TestEmptyDatagrams(t *testing.T) {
	w := newWorld(t)
	var empty atomic.Int32
	w.serveUDP(7, func(datagram []byte, _ net.Addr) []byte {
		if len(datagram) == 0 {
			empty.Add(1)
		}
		return datagram
	})
	port := testnet.FreePort(t, "udp")
	w.load("udp/127.0.0.1:$1 {\nroute {\nwireguard home:7\n}\n}", port)
	c := w.dialUDP(port)
	mustExchange(t, c, "up", "up")
	for range 10 {
		if _, err := c.Write(nil); err != nil {
			t.Fatal(err)
		}
		mustExchange(t, c, "x", "x")
	}
	if n := empty.Load(); n != 10 {
		t.Errorf("%d of 10 empty datagrams arrived", n)
	}
	if relay.Flows.Len() != 1 {
		t.Errorf("%d flows", relay.Flows.Len())
	}
}

// What the matchers have read reaches home in the datagrams that it came in,
// even where they stopped in the middle of one. (Of a datagram above 2048 bytes
// caddy-l4 prefetches a part, and most of its matchers then read for ever; http
// does not.)
func TestDatagramsPrefetched(t *testing.T) {
	for _, tt := range []struct {
		name, routes, prefix string
		sizes                []int
	}{
		{"whole datagrams", "@wanted regexp ^magic 5\nroute @wanted {\n%s\n}", "magic", []int{10, 2047, 2048}},
		{"parts of datagrams", "@http http\nroute @http {\nclose\n}\nroute {\n%s\n}", "this is no HTTP\n", []int{100, 2048, 2049, 5000, 8999}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.serveUDP(7, echoDatagram)
			port := testnet.FreePort(t, "udp")
			w.load("udp/127.0.0.1:$1 {\n"+fmt.Sprintf(tt.routes, "wireguard home:7")+"\n}", port)
			for _, size := range tt.sizes {
				c := w.dialUDP(port)
				text := tt.prefix + strings.Repeat("x", size-len(tt.prefix))
				mustExchange(t, c, text, text)
				mustExchange(t, c, "anything", "anything")
			}
		})
	}
}

func TestDatagramsProxyProtocol(t *testing.T) {
	w := newWorld(t)
	w.serveUDP(7, echoDatagram)
	port := testnet.FreePort(t, "udp")
	w.load(`udp/:$1 {
		route {
			wireguard home:7 {
				proxy_protocol v2
			}
		}
	}`, port)
	c := w.dialUDP(port)
	local := c.LocalAddr().(*net.UDPAddr)
	header, err := proxyproto.HeaderProxyFromAddrs(2, local, &net.UDPAddr{IP: net.IPv4zero.To4(), Port: port}).Format()
	if err != nil {
		t.Fatal(err)
	}
	mustExchange(t, c, "one", string(header)+"one")
	mustExchange(t, c, "two", string(header)+"two")
}

func TestDatagramsProxyProtocolV1(t *testing.T) {
	w := newWorld(t)
	port := testnet.FreePort(t, "udp")
	w.load(`udp/127.0.0.1:$1 {
		route {
			wireguard home:7 {
				proxy_protocol v1
			}
		}
	}`, port)
	c := w.dialUDP(port)
	if _, err := io.WriteString(c, "one"); err != nil {
		t.Fatal(err)
	}
	line := w.lines.next("refused connection")
	has(t, line, map[string]any{"level": "error", "network": "udp", "error": errProxyV1})
}

// The service at home is stopped and started: the flow stays.
func TestDatagramsServiceRestart(t *testing.T) {
	w := newWorld(t)
	port := testnet.FreePort(t, "udp")
	w.load("udp/127.0.0.1:$1 {\nroute {\nwireguard home:7\n}\n}", port)
	c := w.dialUDP(port)
	for range 5 {
		_, _ = io.WriteString(c, "to nobody")
		time.Sleep(50 * time.Millisecond)
	}
	w.serveUDP(7, echoDatagram)
	mustExchange(t, c, "hello", "hello")
	if relay.Flows.Len() != 1 {
		t.Errorf("%d flows", relay.Flows.Len())
	}
}

// flood sends in bursts until stopped.
func flood(t *testing.T, port int, datagram []byte) (stop func()) {
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			_, _ = c.Write(datagram)
			// In bursts longer than all of the server's queues, but not more
			// than home can answer: gVisor's UDP receive queue counts bytes of
			// payload, and so holds tiny datagrams for many seconds.
			if i%64 == 0 {
				time.Sleep(150 * time.Millisecond)
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		c.Close()
	}
}

// caddy-l4's server serves nobody once one handler stops reading from a client
// who goes on sending. None of this may do that.
func TestHostileClientsDoNotWedge(t *testing.T) {
	for _, tt := range []struct {
		name     string
		datagram []byte
		hostile  string // the handler of the hostile clients' port
	}{
		{"flood", []byte("x"), "wireguard home:9"},
		{"empty datagrams", nil, "wireguard home:9"},
		{"dials that fail", []byte("x"), "wireguard {l4.vars.none}:9"},
		{"addresses of no peer", []byte("x"), "vars host 192.0.2.1\nwireguard {l4.vars.host}:9"},
		{"flows that end", []byte("x"), "wireguard home:9 {\nidle_timeout 1ms\n}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.serveUDP(7, echoDatagram)
			port := testnet.FreePort(t, "udp")
			// One server for both: the friendly ones begin with a word.
			w.load(fmt.Sprintf(`udp/127.0.0.1:$1 {
				@friendly regexp ^friend 6
				route @friendly {
					wireguard home:7
				}
				@hostile regexp ^x 1
				route @hostile {
					%s
				}
			}
			udp/127.0.0.1:$2 {
				route {
					%[1]s
				}
			}
			udp/127.0.0.1:$3 {
				route {
					wireguard home:7
				}
			}`, tt.hostile), port, testnet.FreePort(t, "udp"), testnet.FreePort(t, "udp"))
			mustExchange(t, w.dialUDP(port), "friend", "friend")

			if len(tt.datagram) > 0 {
				for range 3 {
					defer flood(t, port, tt.datagram)()
				}
			}
			friend := w.dialUDP(port)
			for i := range 10 {
				text := fmt.Sprintf("friend %d", i)
				mustExchange(t, friend, text, text)
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
}

// The same server has hostile clients and others, and no matcher.
func TestHostileClientsOfOneRoute(t *testing.T) {
	for _, tt := range []struct {
		name     string
		datagram []byte
	}{
		{"flood", []byte("x")},
		{"empty datagrams", nil},
		{"large datagrams", bytes.Repeat([]byte("x"), 9500)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.serveUDP(7, echoDatagram)
			port := testnet.FreePort(t, "udp")
			w.load(`udp/127.0.0.1:$1 {
				route {
					wireguard home:7 {
						idle_timeout 500ms
					}
				}
			}`, port)
			mustExchange(t, w.dialUDP(port), "up", "up")
			for range 3 {
				defer flood(t, port, tt.datagram)()
			}
			for i := range 20 {
				// A new client each time, and flows that end all the time.
				text := fmt.Sprintf("friend %d", i)
				mustExchange(t, w.dialUDP(port), text, text)
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
}

// While home is away, clients wait in vain, but others are served: the dial
// holds up nobody.
func TestDatagramsWhileHomeIsAway(t *testing.T) {
	w := newWorld(t)
	w.serveUDP(7, echoDatagram)
	port := testnet.FreePort(t, "udp")
	w.load(`udp/127.0.0.1:$1 {
		route {
			wireguard home:7 {
				dial_timeout 500ms
			}
		}
	}`, port)
	mustExchange(t, w.dialUDP(port), "up", "up")
	if err := w.home.Down(); err != nil {
		t.Fatal(err)
	}
	stop := flood(t, port, []byte("x"))
	c := w.dialUDP(port)
	if exchange(t, c, "anybody", "anybody", time.Second) {
		t.Fatal("home is down, and answers")
	}
	stop()
	if err := w.home.Up(); err != nil {
		t.Fatal(err)
	}
	mustExchange(t, c, "back", "back")
}
