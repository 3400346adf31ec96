package congestion

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/mholt/caddy-l4"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() { caddy.RegisterModule(new(scarce)) }

// scarce is a listener wrapper for a process that has run out of something.
type scarce struct{}

// scarcity is how often Accept of such listeners still fails.
var scarcity atomic.Int32

func (*scarce) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.listeners.scarce", New: func() caddy.Module { return new(scarce) }}
}

func (*scarce) WrapListener(l net.Listener) net.Listener { return &scarceListener{l} }

type scarceListener struct{ net.Listener }

func (l *scarceListener) Accept() (net.Conn, error) {
	left := scarcity.Add(-1)
	if left < 0 {
		return l.Listener.Accept()
	}
	number := syscall.EMFILE
	if left == 0 {
		number = syscall.ENOMEM
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: os.NewSyscallError("accept4", number)}
}

// A server that could not accept connections for a while serves again, also with
// the wrapper that takes an error for the end.
func TestServesAfterScarcity(t *testing.T) {
	for _, tt := range []struct{ name, wrappers, send, want string }{
		{"http", `{"wrapper": "congestion_control"}`, "GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK\r\n"},
		{"layer4", `{"wrapper": "congestion_control"}, {"wrapper": "layer4", "routes": [{"handle": [{"handler": "echo"}]}]}`, "hello", "hello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := testnet.FreePort(t, "tcp")
			config := fmt.Sprintf(`{
				"admin": {"disabled": true, "config": {"persist": false}},
				"logging": {"logs": {"default": {"writer": {"output": "discard"}}}},
				"apps": {"http": {"servers": {"web": {
					"listen": ["127.0.0.1:%d"],
					"listener_wrappers": [{"wrapper": "scarce"}, %s],
					"automatic_https": {"disable": true},
					"routes": [{"handle": [{"handler": "static_response"}]}]
				}}}}
			}`, port, tt.wrappers)
			scarcity.Store(2)
			if err := caddy.Load([]byte(config), true); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := caddy.Stop(); err != nil {
					t.Error(err)
				}
			}()
			client, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			_ = client.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(client, tt.send); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(tt.want))
			if n, err := io.ReadFull(client, got); err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v", got[:n], err)
			}
			if left := scarcity.Load(); left >= 0 {
				t.Errorf("Accept still fails %d times", left)
			}
		})
	}
}
