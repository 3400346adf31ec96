package tests

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestPublicCongestionControl runs caddyfile-examples/relay.Caddyfile, with BBR
// asked for by name, on a host whose default is another: what web servers' clients
// download comes with BBR, and only that. Without the name, and for relayed
// connections, it depends on the client's distance, which is none here; the
// packages congestion and l4wireguard test both.
func TestPublicCongestionControl(t *testing.T) {
	w := newWorld(t)
	testnet.Need(t, "ss")
	const usual, wanted = "reno", "bbr"
	allowed, err := os.ReadFile("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(strings.Fields(string(allowed)), wanted) {
		t.Skip("this host does not allow bbr")
	}
	w.Relay.Sysctl(t, "net.ipv4.tcp_congestion_control", usual)
	services.StartApache(t, w.Home, w.private)
	services.Echo(t, w.Home, ":22", "")
	w.start(t, replace(t, w.example(t), "congestion_control\n", "congestion_control "+wanted+"\n"))

	open := func(t *testing.T, port string) net.Conn {
		t.Helper()
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Domain+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn
	}
	for _, tt := range []struct {
		name, port string
		use        func(conn net.Conn) error
	}{
		{"https", "443", func(conn net.Conn) error {
			client := tls.Client(conn, &tls.Config{ServerName: testnet.Domain, RootCAs: w.public.Pool()})
			return ask(client, "https://"+testnet.Domain+"/", http.StatusOK)
		}},
		// The wrapper is for all of Caddy's servers.
		{"http", "80", func(conn net.Conn) error {
			return ask(conn, "http://"+testnet.Domain+"/", http.StatusMovedPermanently)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.use(open(t, tt.port)); err != nil {
				t.Fatal(err)
			}
			expectCongestionControl(t, w.Relay, tt.port, wanted)
		})
	}

	// The host's own connections keep what the host has.
	t.Run("admin", func(t *testing.T) {
		conn, err := w.Relay.Dial(t.Context(), "tcp", "localhost:2019")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if err := ask(conn, "http://localhost:2019/config/", http.StatusOK); err != nil {
			t.Fatal(err)
		}
		expectCongestionControl(t, w.Relay, "2019", usual)
	})
	if strings.Contains(w.relay.Log.String(), "congestion control") {
		t.Errorf("the relay complains:\n%s", w.relay.Log.Tail(20))
	}
}

// ask sends a request and leaves the connection open.
func ask(conn net.Conn, url string, status int) error {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext:    func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// The transport closes connections whose answer was not read to its end.
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != status {
		return fmt.Errorf("got status %s, want %d", response.Status, status)
	}
	return nil
}

// expectCongestionControl checks the congestion control of all connections
// that were accepted on a port.
func expectCongestionControl(t *testing.T, namespace *testnet.Namespace, port, want string) {
	t.Helper()
	out := namespace.Output(t, "ss", "--tcp", "--info", "--numeric", "--no-header", "--oneline", "state", "established", "sport", "=", ":"+port)
	for connection := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		if !slices.Contains(strings.Fields(connection), want) {
			t.Errorf("no %s in %q", want, connection)
		}
	}
}
