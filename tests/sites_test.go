package tests

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestSites asks for the home's two sites as curl does. Home has a third one,
// the default, with a wrong certificate: a relay that does not tell home which
// site it wants gets that one.
func TestSites(t *testing.T) {
	w := newWorld(t)
	testnet.Need(t, "curl")
	services.StartApache(t, w.Home, w.private)
	w.start(t, w.example(t))
	checkSites(t, w)

	t.Run("access log", func(t *testing.T) {
		checkCombined(t, filepath.Join(w.relay.Folder, "access.log"))
	})
}

// checkSites asks a relay that serves home's two sites for them, in every way
// that a client may.
func checkSites(t *testing.T, w *world) {
	t.Helper()
	const (
		first  = "https://" + testnet.Domain
		second = "https://" + testnet.Subdomain
	)
	tests := []struct {
		name, url string
		status    int
		location  string
		body      string
	}{
		{"first site", first + "/", 200, "", "this is " + testnet.Domain},
		{"second site", second + "/", 200, "", "this is " + testnet.Subdomain},
		{"first site's folder", first + "/folder/", 200, "", "folder of " + testnet.Domain},
		{"absolute redirect", first + "/old/x?y=z", 302, first + "/new/x?y=z", ""},
		{"absolute redirect of the second", second + "/old", 302, second + "/new", ""},
		{"absolute redirect by mod_dir", second + "/folder", 301, second + "/folder/", ""},
		{"not there", first + "/none", 404, "", ""},
		{"plain HTTP", "http://" + testnet.Domain + "/x?y=z", 301, first + "/x?y=z", ""},
		{"plain HTTP of the second", "http://" + testnet.Subdomain + "/", 301, second + "/", ""},
	}
	for _, version := range []string{"http1.1", "http2", "http3"} {
		get := w.curl
		if version == "http3" {
			get = w.http3Client(t)
		}
		for _, test := range tests {
			plain := strings.HasPrefix(test.url, "http:")
			if plain && version != "http1.1" {
				continue // there is only one version without TLS
			}
			t.Run(version+"/"+test.name, func(t *testing.T) {
				got := get(t, version, test.url)
				if got.status != test.status || got.location != test.location {
					t.Errorf("got status %d, location %q; want %d, %q", got.status, got.location, test.status, test.location)
				}
				if test.body != "" && strings.TrimSpace(got.body) != test.body {
					t.Errorf("got body %q, want %q", got.body, test.body)
				}
				if strings.Contains(got.body, "wrong.invalid") {
					t.Error("home's default site was served")
				}
				if want := strings.TrimPrefix(version, "http"); !strings.HasPrefix(want, got.version) {
					t.Errorf("got HTTP/%s", got.version)
				}
			})
		}
	}
}

// answer is what a test looks at in a response.
type answer struct {
	version  string // 1.1, 2 or 3
	status   int
	location string
	body     string
}

// curl asks with curl in the client's namespace.
func (w *world) curl(t *testing.T, version, url string) answer {
	t.Helper()
	out := w.Client.Output(t, "curl", "--silent", "--show-error", "--max-time", "55", "--"+version,
		"--cacert", w.public.File, "--write-out", `\n%{http_version} %{http_code} %header{location}`, url)
	end := strings.LastIndexByte(out, '\n')
	words := strings.SplitN(out[end+1:], " ", 3)
	status, err := strconv.Atoi(words[1])
	if err != nil {
		t.Fatalf("reading curl's %q: %v", out, err)
	}
	return answer{version: words[0], status: status, location: words[2], body: out[:end]}
}

// http3Client returns a function like curl that asks over HTTP/3, each time
// on the one connection.
func (w *world) http3Client(t *testing.T) func(*testing.T, string, string) answer {
	t.Helper()
	transport := &quic.Transport{Conn: w.Client.ListenPacket(t, "udp", ":0")}
	t.Cleanup(func() { transport.Close() })
	client := &http3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.public.Pool()},
		Dial: func(ctx context.Context, address string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			relay := &net.UDPAddr{IP: net.ParseIP(testnet.RelayIP), Port: 443}
			return transport.DialEarly(ctx, relay, tlsConfig, config)
		},
	}
	t.Cleanup(func() { client.Close() })
	return func(t *testing.T, version, url string) answer {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{
			version:  strconv.Itoa(response.ProtoMajor),
			status:   response.StatusCode,
			location: response.Header.Get("Location"),
			body:     string(body),
		}
	}
}

// combined is a line of Apache's combined log format.
var combined = regexp.MustCompile(`^` + regexp.QuoteMeta(testnet.ClientIP) +
	` - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET \S+ HTTP/\d\.\d" \d{3} (\d+|-) ".*" ".*"$`)

// checkCombined checks every line of an access log, and lets GoAccess do the
// same.
func checkCombined(t *testing.T, path string) {
	t.Helper()
	testnet.Need(t, "goaccess")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	if len(lines) < 20 {
		t.Errorf("only %d lines were logged", len(lines))
	}
	for _, line := range lines {
		if !combined.MatchString(line) {
			t.Errorf("not in the combined format: %s", line)
		}
	}
	out := testnet.Run(t, "goaccess", path, "--log-format=COMBINED", "--no-global-config", "-o", "json", "--no-progress")
	want := fmt.Sprintf(`"valid_requests": %d`, len(lines))
	if !strings.Contains(out, want) {
		t.Errorf("GoAccess does not say %s:\n%.600s", want, out)
	}
}

// TestWrongHome gives home certificates of a CA that the relay does not
// trust: the relay must not serve what comes from there, and say why.
func TestWrongHome(t *testing.T) {
	w := newWorld(t)
	testnet.Need(t, "curl")
	services.StartApache(t, w.Home, testnet.NewCA(t, "somebody else's CA"))
	w.start(t, w.example(t))
	got := w.curl(t, "http2", "https://"+testnet.Domain+"/")
	if got.status != http.StatusBadGateway || strings.Contains(got.body, "this is") {
		t.Errorf("got status %d, body %q; want 502", got.status, got.body)
	}
	w.relay.WaitLog(t, 0, `certificate signed by unknown authority`, 5*time.Second)
}

// TestWebSocket sends messages both ways through the relay and Apache.
func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	services.StartApache(t, w.Home, w.private)
	services.WebSocketEcho(t, w.Home, "127.0.0.1:8081")
	w.start(t, w.example(t))
	socket := openWebSocket(t, w)
	for i := range 100 {
		if err := socket.echo(fmt.Sprintf("message %d %s", i, strings.Repeat("x", i*i))); err != nil {
			t.Fatal(err)
		}
	}
}

// webSocket is a WebSocket to home's echo, through the relay.
type webSocket struct{ net.Conn }

func openWebSocket(t *testing.T, w *world) webSocket {
	t.Helper()
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Domain+":443")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn = tls.Client(conn, &tls.Config{ServerName: testnet.Domain, RootCAs: w.public.Pool()})
	socket, err := services.DialWebSocket(conn, "https://"+testnet.Domain+"/ws")
	if err != nil {
		t.Fatal(err)
	}
	return webSocket{socket}
}

// echo sends a message and waits for its echo.
func (s webSocket) echo(message string) error {
	s.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(s, message); err != nil {
		return fmt.Errorf("sending a WebSocket message: %w", err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(s, got); err != nil {
		return fmt.Errorf("receiving a WebSocket message: %w", err)
	}
	if string(got) != message {
		return fmt.Errorf("got %.40q, sent %.40q", got, message)
	}
	return nil
}
