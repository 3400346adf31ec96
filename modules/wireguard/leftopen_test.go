package wireguard

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestFailedStartLeavesNothingOpen loads configurations that fail when layer4
// has begun to listen, or has done so.
func TestFailedStartLeavesNothingOpen(t *testing.T) {
	o := newOther(t)
	port := testnet.FreePort(t, "tcp")
	host, socket := fmt.Sprintf("127.0.0.1:%d", port), filepath.Join(o.dir, "echo.sock")
	config := string(o.config(fmt.Sprintf(`"layer4": {"servers": {"echo": {
		"listen": ["wireguard/wg0:7", "wireguard+udp/wg0:7", %q, "udp/%[1]s", %[2]q],
		"routes": [{"handle": [{"handler": "echo"}]}]
	}}}`, host, "unix/"+socket)))
	load(t, []byte(config))

	const servers = `"layer4": {"servers": {`
	for _, test := range []struct {
		name, old, new string
		want           string
	}{
		{"in Start", servers, servers + `"broken": {"listen": ["192.0.2.99:1"]}, `, "cannot assign"},
		{"after Start", `"admin": {`, `"admin": {"remote": {}, `, "remote admin"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range 4 { // servers start in any order
				err := caddy.Load([]byte(strings.Replace(config, test.old, test.new, 1)), true)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got %v, want an error with %q", err, test.want)
				}
				expectUsers(t, host, 1)
			}
			for network, address := range map[string]string{"tcp": host, "unix": socket} {
				conn, err := net.DialTimeout(network, address, patience)
				if err != nil {
					t.Fatal(err)
				}
				mustEcho(t, conn)
			}
			conn, err := o.dial(t, 7)
			if err != nil {
				t.Fatal(err)
			}
			mustEcho(t, conn)
		})
	}
	// What is in force is closed once, by its own Stop.
	if err := caddy.Load([]byte(config), true); err != nil {
		t.Fatal(err)
	}
	expectUsers(t, host, 1)
	if err := caddy.Load(o.config(""), true); err != nil {
		t.Fatal(err)
	}
	expectUsers(t, host, 0)
}

// expectUsers checks how many configurations use the echo server's listeners.
func expectUsers(t *testing.T, host string, want int) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		if got := caddy.ListenerUsage(network, host); got != want {
			t.Errorf("%d configurations use %s/%s, want %d", got, network, host, want)
		}
	}
	for _, network := range []string{networkTCP, networkUDP} {
		if got, _ := listeners.References(listenerKey{network: network, tunnel: "wg0", port: 7}); got != want {
			t.Errorf("%d configurations use %s/wg0:7, want %d", got, network, want)
		}
	}
}

func mustEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	got := make([]byte, 5)
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Error(err)
	} else if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Errorf("%s: read %q, %v", conn.RemoteAddr(), got, err)
	}
}
