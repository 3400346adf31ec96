package tests

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestStopInGrace asks the relay and all its processes to end, as systemd does by
// default, while a download by HTTPS and one by TCP are half done and a session is
// open. They come to their ends, and then the relay does.
func TestStopInGrace(t *testing.T) {
	const size = 32 << 20
	w := newWorld(t)
	apache := services.StartApache(t, w.Home, w.private)
	server := services.StartSSH(t, w.Home)
	services.Hasher(t, w.Home, ":7001", 2, size)
	caddyfile := w.example(t)
	caddyfile = replace(t, caddyfile, "	# Certificates and keys are kept here.", "	grace_period 1m\n	# Certificates and keys are kept here.")
	caddyfile = replace(t, caddyfile, "		# A UDP service would be:", "		:7001 {\n			route {\n				wireguard home:7001\n			}\n		}\n		# A UDP service would be:")
	binary := filepath.Join(testnet.Folder(t), "caddy") // to tell its holders from others'
	testnet.Run(t, "cp", testnet.Caddy(t), binary)
	w.relay.UseBinary(binary)
	w.start(t, caddyfile)

	session := openSession(t, w, server)
	if err := session.echo("before"); err != nil {
		t.Fatal(err)
	}
	want := services.NewStream(3, size)
	file, err := os.Create(filepath.Join(apache.Folder, testnet.Domain, "dav", "half"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(file, want); err != nil {
		t.Fatal(err)
	}
	file.Close()
	transport := w.Client.HTTPTransport(t)
	transport.TLSClientConfig = &tls.Config{RootCAs: w.public.Pool()}
	client := &http.Client{Transport: transport, Timeout: 2 * time.Minute}
	response, err := client.Get("https://" + testnet.Domain + "/dav/half")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	bySite := bufio.NewReader(response.Body)
	conn := dialHasher(t, w)
	byPort := bufio.NewReader(conn)
	for _, half := range []*bufio.Reader{bySite, byPort} {
		if _, err := half.Peek(1); err != nil {
			t.Fatal(err)
		}
	}

	for _, holder := range holdersOf(t, binary) {
		if err := unix.Kill(holder, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	w.relay.Signal(unix.SIGTERM)
	w.relay.WaitLog(t, 0, "exiting; byeee", 10*time.Second)
	if err := session.echo("while it ends"); err != nil {
		t.Error("the session: ", err)
	}
	if got, received, err := services.SumReader(bySite); got != want.Sum() || err != nil {
		t.Errorf("the download by HTTPS has %d bytes (%v), want %d", received, err, size)
	}
	line, _ := byPort.ReadString('\n')
	if received, err := io.Copy(io.Discard, byPort); received != size || err != nil {
		t.Errorf("the download by TCP has %d bytes after %q (%v), want %d", received, line, err, size)
	}
	if err := session.echo("at last"); err != nil {
		t.Error("the session: ", err)
	}
	session.finish(t)
	select {
	case <-w.relay.Exited():
		if err := w.relay.Err(); err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the relay goes on, though nobody needs it")
	}
}

// TestStopResets asks the relay to end under connections that do not. Their
// clients are told by RST: an orderly end would look as if all had come.
func TestStopResets(t *testing.T) {
	for _, tt := range []struct{ name, grace string }{
		{"without a grace period", ""},
		{"after the grace period", "	grace_period 1s\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			services.Echo(t, w.Home, ":7000", "")
			caddyfile := replace(t, w.ports(t), "	auto_https off\n", "	auto_https off\n"+tt.grace)
			// Without a site there is no http app, and no grace period.
			w.start(t, caddyfile+"\nhttp://:80 {\n	respond ok\n}\n")
			conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.WriteString(conn, "x"); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			w.relay.Signal(unix.SIGTERM)
			if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client reads %d bytes and %v, want a reset", n, err)
			}
			if err := w.relay.Err(); err != nil {
				t.Error(err)
			}
			waited := strings.Contains(w.relay.Log.String(), "waiting for relayed connections to end")
			if want := tt.grace != ""; waited != want {
				t.Errorf("it has waited: %v, want %v", waited, want)
			}
		})
	}
}

// dialHasher begins a download from the hasher on port 7001.
func dialHasher(t *testing.T, w *world) net.Conn {
	t.Helper()
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7001")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return conn
}
