package services

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// local is one namespace in which all names are the machine itself: the
// services without any relay, so that a relay's test can be believed.
func local(t *testing.T) *testnet.Namespace {
	namespace := testnet.NewNamespace(t, "local")
	namespace.SetHosts(t, map[string]string{
		testnet.Domain: "127.0.0.1", testnet.Subdomain: "127.0.0.1", "other.example": "127.0.0.1",
	})
	return namespace
}

func TestApache(t *testing.T) {
	namespace := local(t)
	ca := testnet.NewCA(t, "home CA")
	StartApache(t, namespace, ca)
	transport := namespace.HTTPTransport(t)
	transport.TLSClientConfig = &tls.Config{RootCAs: ca.Pool()}

	tests := []struct {
		name, url, want string
		proto           int
	}{
		{"first site", "https://example.duckdns.org/", "this is example.duckdns.org", 2},
		{"second site", "https://sub.example.duckdns.org/", "this is sub.example.duckdns.org", 2},
		{"plain", "http://sub.example.duckdns.org/", "this is sub.example.duckdns.org", 1},
		{"the wrong site for a wrong name", "http://other.example/", "this is wrong.invalid", 1},
		{"redirect", "https://example.duckdns.org/old/x", "https://example.duckdns.org/new/x", 2},
		{"redirect of a folder", "https://sub.example.duckdns.org/folder", "https://sub.example.duckdns.org/folder/", 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			request, _ := http.NewRequest("GET", test.url, nil)
			response, err := transport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			got := strings.TrimSpace(string(body))
			if location := response.Header.Get("Location"); location != "" {
				got = location
			}
			if got != test.want || response.ProtoMajor != test.proto {
				t.Errorf("got %s, %q; want HTTP/%d, %q", response.Proto, got, test.proto, test.want)
			}
		})
	}

	t.Run("the wrong certificate for a wrong name", func(t *testing.T) {
		request, _ := http.NewRequest("GET", "https://other.example/", nil)
		_, err := transport.RoundTrip(request)
		if err == nil || !strings.Contains(err.Error(), "wrong.invalid") {
			t.Errorf("got %v, want an error about wrong.invalid", err)
		}
	})

	t.Run("put and get", func(t *testing.T) {
		up := NewStream(1, 1<<20)
		request, _ := http.NewRequest("PUT", "https://example.duckdns.org/dav/file", up)
		response, err := transport.RoundTrip(request)
		if err != nil || response.StatusCode != http.StatusCreated {
			t.Fatal(err, response)
		}
		response.Body.Close()
		request, _ = http.NewRequest("GET", "https://example.duckdns.org/dav/file", nil)
		response, err = transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if sum, _, _ := SumReader(response.Body); sum != up.Sum() {
			t.Errorf("got %s, want %s", sum, up.Sum())
		}
	})

	t.Run("websocket", func(t *testing.T) {
		WebSocketEcho(t, namespace, "127.0.0.1:8081")
		conn, err := namespace.Dial(t.Context(), "tcp", testnet.Domain+":443")
		if err != nil {
			t.Fatal(err)
		}
		conn = tls.Client(conn, &tls.Config{ServerName: testnet.Domain, RootCAs: ca.Pool()})
		socket, err := DialWebSocket(conn, "https://"+testnet.Domain+"/ws")
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		io.WriteString(socket, "hello")
		answer := make([]byte, 5)
		if _, err := io.ReadFull(socket, answer); err != nil || string(answer) != "hello" {
			t.Errorf("got %q, %v", answer, err)
		}
	})
}

func TestSSH(t *testing.T) {
	namespace := local(t)
	server := StartSSH(t, namespace)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := server.Login(ctx, namespace, testnet.Domain, "22", "echo", "in").CombinedOutput()
	if err != nil || string(out) != "in\n" {
		t.Errorf("%v, %s", err, out)
	}
	// sshd's log may come later than its answer.
	testnet.Eventually(t, 5*time.Second, func() error {
		if logins := server.Logins(); logins != 1 {
			return fmt.Errorf("sshd accepted %d logins", logins)
		}
		return nil
	})
}

func TestSyslog(t *testing.T) {
	for _, mode := range []string{"x509/name", "x509/certvalid"} {
		t.Run(strings.TrimPrefix(mode, "x509/"), func(t *testing.T) {
			namespace := local(t)
			server := StartSyslogNG(t, namespace)
			var want []string
			for i := range 10 {
				want = append(want, fmt.Sprint("message ", i))
			}
			input := filepath.Join(testnet.Folder(t), "in")
			testnet.WriteFile(t, input, []byte(strings.Join(want, "\n")+"\n"), 0o644)
			StartRsyslog(t, namespace, server, Rsyslog{Host: testnet.Domain, Mode: mode, Program: "test", Input: input})
			testnet.Eventually(t, 15*time.Second, func() error {
				if got := server.Received(t, "test"); !slices.Equal(got, want) {
					return fmt.Errorf("received %q", got)
				}
				return nil
			})
		})
	}

	t.Run("without a certificate", func(t *testing.T) {
		namespace := local(t)
		StartSyslogNG(t, namespace)
		conn, err := namespace.Dial(t.Context(), "tcp", testnet.Domain+":6514")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		client.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(client, "x")
		if _, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("got %v, want a TLS alert", err)
		}
	})
}
