package tests

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestReload reloads a relay that is in use: an SSH session, a WebSocket and a
// download go on, and new connections always find somebody.
func TestReload(t *testing.T) {
	w := newWorld(t)
	ssh := services.StartSSH(t, w.Home)
	services.StartApache(t, w.Home, w.private)
	services.WebSocketEcho(t, w.Home, "127.0.0.1:8081")
	services.Echo(t, w.Home, ":7000", "")
	text := replace(t, w.example(t), "		:2022 {", `		:7000 {
			route {
				wireguard home:7000
			}
		}
		:2022 {`)
	// Caddy opens a second listener and closes the first, which resets whoever
	// waits in it, unless the kernel may hand them over. The README tells users.
	w.Relay.Sysctl(t, "net.ipv4.tcp_migrate_req", "1")
	w.start(t, text)

	session := openSession(t, w, ssh)
	socket := openWebSocket(t, w)
	download := startDownload(t, w)
	visitors := startVisitors(t, w)

	use := func(when string) {
		t.Helper()
		for name, err := range map[string]error{
			"the SSH session": session.echo(when),
			"the WebSocket":   socket.echo(when),
			"the download":    download.read(8 << 20),
		} {
			if err != nil {
				t.Fatalf("%s, %s: %v", name, when, err)
			}
		}
	}
	use("before the reload")
	for n := range 4 {
		// Something else changes each time; the rest must not notice.
		changed := replace(t, text, "		:2022 {", fmt.Sprintf(`		:%d {
			route {
				wireguard home:7000
			}
		}
		:2022 {`, 7100+n))
		if out, err := w.relay.Reload(t, changed); err != nil {
			t.Fatalf("reload %d: %v\n%s", n, err, out)
		}
		use(fmt.Sprintf("after reload %d", n))
		conn, err := w.Client.Dial(t.Context(), "tcp", fmt.Sprintf("%s:%d", testnet.Endpoint, 7100+n))
		if err != nil {
			t.Fatalf("the new port after reload %d: %v", n, err)
		}
		if err := echoOnce(conn, "new port"); err != nil {
			t.Errorf("the new port after reload %d: %v", n, err)
		}
		conn.Close()
	}
	if count := visitors(); count < 20 {
		t.Errorf("only %d short connections were made meanwhile", count)
	}
	download.finish(t)
	session.finish(t)
	if got := ssh.Logins(); got != 1 {
		t.Errorf("sshd saw %d logins: the session was not the same", got)
	}
}

// TestReloadOnSlowLines reloads either end while the end of a download over HTTP/2 is
// on its way through a slow line. Go's server closes such a connection within a
// second.
func TestReloadOnSlowLines(t *testing.T) {
	const size = 5 << 18
	for _, tt := range []struct {
		name   string
		slow   func(*world) (*testnet.Namespace, string) // the interface to the slow line
		reload func(t *testing.T, w *world, relayText string, own *testnet.Relay, ownText string) error
	}{
		{
			"the VM, and the client is slow",
			func(w *world) (*testnet.Namespace, string) { return w.Core, "client" },
			func(t *testing.T, w *world, relayText string, _ *testnet.Relay, _ string) error {
				return w.relay.Load(t, relayText+"http://other.example.org {\n	respond hello\n}\n")
			},
		},
		{
			"home, and its line is slow",
			func(w *world) (*testnet.Namespace, string) { return w.Router, "eth0" },
			func(t *testing.T, _ *world, _ string, own *testnet.Relay, ownText string) error {
				return own.Load(t, ownText+"http://other.example.org {\n	bind wireguard/wg0\n	respond hello\n}\n")
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.relay.UseBinary(testnet.FastCaddy(t))
			own := testnet.NewRelay(t, w.Home)
			own.UseBinary(testnet.FastCaddy(t))
			stream, page := services.NewStream(5, size), make([]byte, size)
			if _, err := io.ReadFull(stream, page); err != nil {
				t.Fatal(err)
			}
			testnet.WriteFile(t, filepath.Join(own.Folder, "page"), page, 0o644)
			site := w.private.Issue(t, testnet.Domain)
			ownText := fmt.Sprintf(`{
	storage file_system %[1]s/storage
	auto_https disable_redirects
	wireguard wg0 {
		private_key {file.%[2]s}
		address %[3]s/24
		peer relay {
			public_key %[4]s
			allowed_ips %[5]s/32
			endpoint %[6]s:51820
			persistent_keepalive 25s
		}
	}
}
https://%[7]s {
	bind wireguard/wg0
	tls %[8]s %[9]s
	root %[1]s
	file_server
}
`, own.Folder, own.Secret(t, "wg0.key", w.keys.Home.Private), testnet.HomeTunnelIP, w.keys.Relay.Public,
				testnet.RelayTunnelIP, testnet.Endpoint, testnet.Domain, site.Cert, site.Key)
			text := w.example(t)
			w.relay.Start(t, text)
			own.Start(t, ownText)

			transport := w.Client.HTTPTransport(t)
			transport.TLSClientConfig = &tls.Config{RootCAs: w.public.Pool()}
			client := &http.Client{Transport: transport}
			get := func() (*http.Response, error) {
				response, err := client.Get("https://" + testnet.Domain + "/page")
				if err == nil && response.StatusCode != http.StatusOK {
					response.Body.Close()
					err = errors.New(response.Status)
				}
				return response, err
			}
			var response *http.Response
			testnet.Eventually(t, 20*time.Second, func() (err error) {
				response, err = get()
				return err
			})
			if sum, _, err := services.SumReader(response.Body); err != nil || sum != stream.Sum() {
				t.Fatalf("before: %v", err)
			}
			response.Body.Close()

			namespace, eth := tt.slow(w)
			namespace.Output(t, "tc", "qdisc", "add", "dev", eth, "root", "tbf", "rate", "4mbit", "burst", "32k", "latency", "200ms")
			response, err := get()
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if response.ProtoMajor != 2 {
				t.Fatalf("got %s", response.Proto)
			}
			got := services.NewDigest()
			if _, err := io.CopyN(got, response.Body, 64<<10); err != nil {
				t.Fatal(err)
			}
			if err := tt.reload(t, w, text, own, ownText); err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(got, response.Body)
			if err != nil || got.Sum() != stream.Sum() {
				t.Errorf("got %d of %d bytes: %v", 64<<10+n, size, err)
			}
		})
	}
}

// session is a shell at home over SSH.
type session struct {
	in   io.WriteCloser
	out  *bufio.Reader
	wait func() error
}

func openSession(t *testing.T, w *world, server *services.SSH) *session {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	cmd := server.Login(ctx, w.Client, testnet.Endpoint, "2022", "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &session{in: in, out: bufio.NewReader(out), wait: cmd.Wait}
}

// sessionPatience is how long a session may be silent: longer than any way back
// takes after a change of home's line.
const sessionPatience = time.Minute

// echo types a line and waits until cat prints it.
func (s *session) echo(line string) error {
	if _, err := fmt.Fprintln(s.in, line); err != nil {
		return err
	}
	answer := make(chan error, 1)
	go func() {
		got, err := s.out.ReadString('\n')
		if err == nil && strings.TrimSpace(got) != line {
			err = fmt.Errorf("got %q, typed %q", got, line)
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-time.After(sessionPatience):
		return fmt.Errorf("no answer to %q", line)
	}
}

func (s *session) finish(t *testing.T) {
	t.Helper()
	s.in.Close()
	if err := s.wait(); err != nil {
		t.Errorf("the SSH session ended with %v", err)
	}
}

// download is a file that is fetched from home over HTTPS, as slowly as the
// test reads it.
type download struct {
	body io.ReadCloser
	read func(size int64) error
	left int64
	want string
	got  *services.Digest
}

func startDownload(t *testing.T, w *world) *download {
	t.Helper()
	const size = 128 << 20
	transport := w.Client.HTTPTransport(t)
	transport.TLSClientConfig = &tls.Config{RootCAs: w.public.Pool()}
	client := &http.Client{Transport: transport}
	const url = "https://" + testnet.Domain + "/dav/download"
	up := services.NewStream(3, size)
	request, err := http.NewRequest(http.MethodPut, url, up)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	response, err = client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	d := &download{body: response.Body, left: size, want: up.Sum(), got: services.NewDigest()}
	d.read = func(size int64) error {
		n, err := io.CopyN(d.got, d.body, size)
		d.left -= n
		return err
	}
	return d
}

// finish reads the rest and compares hashes.
func (d *download) finish(t *testing.T) {
	t.Helper()
	if err := d.read(d.left); err != nil {
		t.Fatalf("the rest of the download: %v", err)
	}
	if got := d.got.Sum(); got != d.want {
		t.Errorf("the download has hash %s, want %s", got, d.want)
	}
}

// startVisitors opens short connections one after the other. The function
// that it returns stops that and says how many there were; each that fails is
// an error of the test.
func startVisitors(t *testing.T, w *world) (stop func() int) {
	t.Helper()
	done := make(chan struct{})
	var (
		visits sync.WaitGroup
		once   sync.Once
		count  int
	)
	visits.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			conn, err := w.Client.Dial(context.Background(), "tcp", testnet.Endpoint+":7000")
			if err == nil {
				err = echoOnce(conn, "visit")
				conn.Close()
			}
			if err != nil {
				t.Errorf("short connection %d: %v", count, err)
				return
			}
			count++
		}
	})
	stop = func() int {
		once.Do(func() { close(done) })
		visits.Wait()
		return count
	}
	t.Cleanup(func() { stop() })
	return stop
}
