package lab

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// startTestWeb serves a handler as home's web server, and returns a transport
// whose connections all lead there.
func startTestWeb(t *testing.T, handler http.Handler) *http.Transport {
	t.Helper()
	ca := testnet.NewCA(t, "test CA")
	server := httptest.NewUnstartedServer(handler)
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, testnet.Domain).Load(t)}}
	server.StartTLS()
	t.Cleanup(server.Close)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
		TLSClientConfig:   &tls.Config{RootCAs: ca.Pool()},
		ForceAttemptHTTP2: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func TestWeb(t *testing.T) {
	transport := startTestWeb(t, webHandler())
	if err := loadPage(t.Context(), transport); err != nil {
		t.Error(err)
	}
	get := func(path string) (status int, body string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, site+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(content)
	}
	// A browser that reads the document finds the objects that ours fetches.
	if _, document := get("/"); strings.Count(document, "<img ") != objects || !strings.Contains(document, objectPath(objects-1)) {
		t.Errorf("the document has not all of its objects:\n%s", document)
	}
	for path, want := range map[string]int{"/bytes/0": 200, "/bytes/-1": 400, "/bytes/many": 400, "/elsewhere": 404} {
		if got, _ := get(path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	_, body := get("/bytes/100000")
	var packed bytes.Buffer
	compressor, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(compressor, body); err != nil {
		t.Fatal(err)
	}
	if err := compressor.Close(); err != nil {
		t.Fatal(err)
	}
	if len(body) != 100_000 || packed.Len() < len(body) {
		t.Errorf("%d bytes, %d when compressed", len(body), packed.Len())
	}
}

func TestWebSocketEcho(t *testing.T) {
	transport := startTestWeb(t, webHandler())
	conn, err := transport.DialContext(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	config := transport.TLSClientConfig.Clone()
	config.ServerName = testnet.Domain
	config.NextProtos = nil
	socket, err := services.DialWebSocket(tls.Client(conn, config), site+webSocketPath)
	if err != nil {
		t.Fatal(err)
	}
	found, err := watchEcho(t.Context(), socket, 5*pingInterval)
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range []string{metricP50, metricP95, metricMax, metricGap} {
		if found.metrics[metric] <= 0 {
			t.Errorf("%s is missing: %v", metric, found.metrics)
		}
	}
}

func TestWatchEchoOfAnEnd(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		io.CopyN(far, far, 3)
		far.Close()
	}()
	if _, err := watchEcho(t.Context(), near, 5*pingInterval); err == nil || !strings.Contains(err.Error(), "after 2 of 5 bytes") {
		t.Errorf("got %v", err)
	}
}

// TestFetchRefuses makes sure that no wrong answer becomes a figure.
func TestFetchRefuses(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/right", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "12345") })
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "12345")
	})
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "123456") })
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "123")
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/right", http.StatusFound) })
	good := startTestWeb(t, mux)
	untrusting, old, misnamed := good.Clone(), good.Clone(), good.Clone()
	untrusting.TLSClientConfig.RootCAs = testnet.NewCA(t, "another CA").Pool()
	old.ForceAttemptHTTP2, old.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
	misnamed.TLSClientConfig.ServerName = testnet.Subdomain

	for _, test := range []struct {
		path      string
		transport *http.Transport
		wrong     bool
		want      string
	}{
		{"/right", good, false, ""},
		{"/status", good, true, "502"},
		{"/long", good, true, "6 bytes, not 5"},
		{"/moved", good, true, "302"},
		{"/cut", good, false, "INTERNAL_ERROR"},
		{"/right", old, true, "HTTP/1.1"},
		{"/right", untrusting, true, "unknown authority"},
		{"/right", misnamed, true, testnet.Subdomain},
	} {
		t.Run(test.path+" "+test.want, func(t *testing.T) {
			err := fetch(t.Context(), test.transport, test.path, 5)
			test.transport.CloseIdleConnections()
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			var wrong wrongAnswer
			if errors.As(err, &wrong) != test.wrong {
				t.Errorf("%v: wrong is %t", err, !test.wrong)
			}
		})
	}
}

func TestInTurn(t *testing.T) {
	failure := errors.New("no line")
	for _, test := range []struct {
		name    string
		answers []error // the last one again and again
		failed  float64
		want    string
	}{
		{"all are answered", []error{nil}, 0, ""},
		{"two fail", []error{failure, nil, failure, nil}, 2, ""},
		{"none is answered", []error{failure}, 0, "no line"},
		{"one is wrong", []error{nil, failure, wrongAnswer{errors.New("not home's")}}, 0, "not home's"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var found *result
			var err error
			// Longer if the machine was too busy to get to the last answer.
			for seconds, asked := 1, 0; seconds <= 8 && asked < len(test.answers); seconds *= 2 {
				asked = 0
				r := &run{traffic: &Traffic{Seconds: seconds}}
				found, err = r.inTurn(t.Context(), func(ctx context.Context) (time.Duration, error) {
					answer := test.answers[min(asked, len(test.answers)-1)]
					asked++
					return time.Millisecond, errors.Join(pause(ctx, 10*time.Millisecond), answer)
				})
			}
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if found.metrics[metricFailed] != test.failed || found.metrics[metricMax] != 1 {
				t.Errorf("got %v, want %g failed", found.metrics, test.failed)
			}
		})
	}
}
