package l4wireguard

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"github.com/pires/go-proxyproto"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestClientSocket(t *testing.T) {
	for _, tt := range []struct {
		name string
		wrap func(net.Conn) net.Conn
		want bool
	}{
		{"a socket", func(c net.Conn) net.Conn { return c }, true},
		{"what embeds one", func(c net.Conn) net.Conn { return &embedding{Conn: c} }, false},
		{"TLS", func(c net.Conn) net.Conn { return tls.Server(c, &tls.Config{}) }, false},
		{"PROXY protocol", func(c net.Conn) net.Conn { return proxyproto.NewConn(c) }, false},
		{"a layer4 connection", func(c net.Conn) net.Conn { return layer4.WrapConnection(c, nil, zap.NewNop()) }, false},
		{"no TCP", func(net.Conn) net.Conn { near, _ := net.Pipe(); return near }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			far, near := tcpPair(t)
			// go-proxyproto reads it before it says who is there.
			if _, err := io.WriteString(far, "PROXY TCP4 203.0.113.9 198.51.100.1 4711 22\r\n"); err != nil {
				t.Fatal(err)
			}
			c := &client{Connection: layer4.WrapConnection(tt.wrap(near), nil, zap.NewNop())}
			from, ready := c.SpliceFrom()
			if (from != nil) != tt.want || !ready || (c.SpliceTo() != nil) != tt.want {
				t.Errorf("reads from %v, ready %v, writes to %v", from, ready, c.SpliceTo())
			}
		})
	}
}

// Bytes that matchers have read come before those in the socket.
func TestClientSocketPrefetched(t *testing.T) {
	far, near := tcpPair(t)
	c := &client{Connection: layer4.WrapConnection(near, []byte("first"), zap.NewNop())}
	if _, err := io.WriteString(far, "then"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 3)
	for _, want := range []string{"fir", "st"} {
		if socket, ready := c.SpliceFrom(); socket == nil || ready {
			t.Errorf("ready before %q was read", want)
		}
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != want {
			t.Fatalf("read %q, %v", buf[:n], err)
		}
	}
	if _, ready := c.SpliceFrom(); !ready {
		t.Error("not ready after all of it was read")
	}
	mustRead(t, c, "then")
}

// direct is a handler that relays as Handler does, but to a port of this
// machine, whose connections are sockets as those of the kernel's stack are.
type direct struct {
	Port int `json:"port"`
}

// relayed is what became of direct's connections.
var relayed = make(chan relay.Result, 10)

func init() { caddy.RegisterModule(direct{}) }

func (direct) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_direct", New: func() caddy.Module { return new(direct) }}
}

func (d direct) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	up, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: d.Port})
	if err != nil {
		return err
	}
	down := &client{Connection: cx}
	result := relay.NewStream(down, up, 0).Run()
	down.account(result)
	relayed <- result
	return nil
}

// What Caddy accepts is spliced, after what the matchers have read and unless a
// handler has wrapped it, and caddy-l4's own log still has all of the bytes.
func TestSplicedFromCaddy(t *testing.T) {
	const size = 8 << 20
	home, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	go func() {
		for {
			c, err := home.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); echo(c) }()
		}
	}()

	for _, tt := range []struct {
		name    string
		match   string // matchers
		before  string // handlers
		header  string // what the client sends to them
		spliced bool
	}{
		{"any", ``, ``, ``, true},
		{"prefetched", `"match":[{"ssh":{}}],`, ``, ``, true},
		{"throttled", ``, `{"handler":"throttle","read_bytes_per_second":1e12,"read_burst_size":1000000},`, ``, false},
		{"PROXY protocol", ``, `{"handler":"proxy_protocol"},`, "PROXY TCP4 203.0.113.9 198.51.100.1 4711 22\r\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			port := testnet.FreePort(t, "tcp")
			config := fmt.Sprintf(`{
				"admin": {"disabled": true, "config": {"persist": false}},
				"storage": {"module": "file_system", "root": %[1]q},
				"logging": {"logs": {
					"default": {"writer": {"output": "discard"}},
					"stats": {"level": "DEBUG", "include": ["layer4"], "writer": {"output": "file", "filename": %[2]q}, "encoder": {"format": "json"}}
				}},
				"apps": {"layer4": {"servers": {"s": {
					"listen": ["127.0.0.1:%[3]d"],
					"routes": [{%[4]s "handle": [%[5]s {"handler": "test_direct", "port": %[6]d}]}]
				}}}}
			}`, dir, filepath.Join(dir, "stats.log"), port, tt.match, tt.before, home.Addr().(*net.TCPAddr).Port)
			if err := caddy.Load([]byte(config), true); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := caddy.Stop(); err != nil {
					t.Error(err)
				}
			}()

			c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			text := "SSH-2.0-test\r\n" + strings.Repeat("x", size)
			go func() {
				_, _ = io.WriteString(c, tt.header+text)
				_ = c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || string(got) != text {
				t.Fatalf("received %d of %d bytes, or others: %v", len(got), len(text), err)
			}
			result := <-relayed
			if result.Sent != uint64(len(text)) || result.Received != uint64(len(text)) || (result.Spliced > 0) != tt.spliced {
				t.Errorf("relayed %+v", result)
			}
			lines := &logFile{t: t, path: filepath.Join(dir, "stats.log")}
			line := lines.next("stopped handling connection; connection stats")
			has(t, line, map[string]any{"read": float64(len(tt.header + text)), "written": float64(len(text))})
		})
	}
}
