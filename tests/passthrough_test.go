package tests

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestPassthrough runs caddyfile-examples/passthrough.Caddyfile: TLS ends at
// home, so clients see home's own certificates.
func TestPassthrough(t *testing.T) {
	w := newWorld(t)
	testnet.Need(t, "curl")
	apache := services.StartApache(t, w.Home, w.public)
	w.start(t, substitute(t, "caddyfile-examples/passthrough.Caddyfile", w.paths(nil)))

	for _, version := range []string{"http1.1", "http2"} {
		for _, site := range []string{testnet.Domain, testnet.Subdomain} {
			t.Run(version+"/"+site, func(t *testing.T) {
				got := w.curl(t, version, "https://"+site+"/")
				if got.status != http.StatusOK || strings.TrimSpace(got.body) != "this is "+site {
					t.Errorf("got %d, %q", got.status, got.body)
				}
			})
		}
	}

	t.Run("the certificate is home's", func(t *testing.T) {
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Domain+":443")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := tls.Client(conn, &tls.Config{ServerName: testnet.Domain, RootCAs: w.public.Pool()})
		client.SetDeadline(time.Now().Add(10 * time.Second))
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		want, err := x509.ParseCertificate(apache.Certificates[testnet.Domain].Load(t).Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := client.ConnectionState().PeerCertificates[0]; !got.Equal(want) {
			t.Errorf("got the certificate %v, want home's %v", got.SerialNumber, want.SerialNumber)
		}
	})

	// HTTP/3 is UDP to the relay; only home can read even its first packet.
	t.Run("http3", func(t *testing.T) {
		server := &http3.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "HTTP/3 at home for "+r.Host)
			}),
			TLSConfig: http3.ConfigureTLSConfig(&tls.Config{
				Certificates: []tls.Certificate{w.public.Issue(t, testnet.Domain).Load(t)},
			}),
		}
		go server.Serve(w.Home.ListenPacket(t, "udp", ":443"))
		t.Cleanup(func() { server.Close() })
		got := w.http3Client(t)(t, "http3", "https://"+testnet.Domain+"/")
		if want := "HTTP/3 at home for " + testnet.Domain; got.version != "3" || got.body != want {
			t.Errorf("got HTTP/%s, %q, want %q", got.version, got.body, want)
		}
	})

	// A name that is not passed on is turned away, and never gets home's
	// default site.
	t.Run("another name", func(t *testing.T) {
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Domain+":443")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := tls.Client(conn, &tls.Config{ServerName: "wrong.invalid", RootCAs: w.public.Pool()})
		client.SetDeadline(time.Now().Add(10 * time.Second))
		if err := client.Handshake(); err == nil || os.IsTimeout(err) {
			t.Errorf("the handshake ended with %v, want the connection's end", err)
		}
	})

	// An ACME server that asks over HTTP finds home's answer.
	t.Run("HTTP-01", func(t *testing.T) {
		folder := filepath.Join(apache.Folder, testnet.Subdomain, ".well-known", "acme-challenge")
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		testnet.WriteFile(t, filepath.Join(folder, "token"), []byte("token.thumbprint"), 0o644)
		got := w.curl(t, "http1.1", "http://"+testnet.Subdomain+"/.well-known/acme-challenge/token")
		if got.status != http.StatusOK || got.body != "token.thumbprint" {
			t.Errorf("got %d, %q", got.status, got.body)
		}
	})
}
