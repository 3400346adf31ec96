package certfile

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/quic-go/quic-go/http3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/homeward-relay/homeward/tests/testnet"
)

const (
	ecdsaOnly = "ecdsa.duckdns.org"
	missing   = "missing.duckdns.org"
)

// TestSites has Caddy serve sites from files: to clients of every kind, and without
// asking an ACME server for anything.
func TestSites(t *testing.T) {
	s := newServer(t)
	ecdsaFiles := ecdsaPair(t, domain).write(t, t.TempDir())
	rsaFiles := newPair(t, quarter, rsaKey(), domain).write(t, t.TempDir())
	only := ecdsaPair(t, ecdsaOnly).write(t, t.TempDir())
	s.load(t, fmt.Sprintf(`
		%s, %s {
			bind 127.0.0.1
			tls {
				get_certificate file %s %s
				get_certificate file %s %s
			}
			respond "hello"
		}
		%s {
			bind 127.0.0.1
			tls {
				get_certificate file %s %s
			}
			respond "hello"
		}`, domain, missing, ecdsaFiles.certificate, ecdsaFiles.key, rsaFiles.certificate, rsaFiles.key, ecdsaOnly, only.certificate, only.key))

	onlyRSA := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	for _, tt := range []struct {
		name, server string
		suites       []uint16 // of TLS 1.2; nil for TLS 1.3
		want         string   // the key's type, or empty if there is no connection
	}{
		{"TLS 1.3", domain, nil, "*ecdsa.PublicKey"},
		{"the name in capitals", strings.ToUpper(domain), nil, "*ecdsa.PublicKey"},
		{"ECDSA", domain, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, "*ecdsa.PublicKey"},
		{"RSA", domain, onlyRSA, "*rsa.PublicKey"},
		{"RSA where there is none", ecdsaOnly, onlyRSA, ""},
		{"nobody's name", "unknown.duckdns.org", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := &tls.Config{ServerName: tt.server, InsecureSkipVerify: true, CipherSuites: tt.suites}
			if tt.suites != nil {
				config.MaxVersion = tls.VersionTLS12
			}
			leaf, err := s.handshake(config)
			if tt.want == "" {
				if err == nil {
					t.Errorf("got a certificate for %v", leaf.DNSNames)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%T", leaf.PublicKey); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if err := leaf.VerifyHostname(tt.server); err != nil {
				t.Error(err)
			}
		})
	}

	t.Run("HTTP/3", func(t *testing.T) {
		transport := &http3.Transport{TLSClientConfig: &tls.Config{ServerName: domain, InsecureSkipVerify: true}}
		defer transport.Close()
		response, body := s.get(t, transport, "https://127.0.0.1:"+s.https)
		if response.StatusCode != http.StatusOK || body != "hello" || response.TLS.PeerCertificates[0].DNSNames[0] != domain {
			t.Errorf("got %s %q", response.Status, body)
		}
	})
	t.Run("redirect", func(t *testing.T) {
		response, _ := s.get(t, &http.Transport{DisableKeepAlives: true}, "http://127.0.0.1:"+s.http)
		if got, want := response.Header.Get("Location"), "https://"+domain+"/"; response.StatusCode != http.StatusPermanentRedirect || got != want {
			t.Errorf("got %s to %q, want one to %q", response.Status, got, want)
		}
	})
	t.Run("names that are in no file", func(t *testing.T) {
		if messages := explanations(t); !slices.Equal(messages, []string{"certificates in files are not for all names of their site [" + missing + "]"}) {
			t.Errorf("got %q", messages)
		}
		if n := s.orders.Load(); n != 0 {
			t.Errorf("the ACME server was asked %d times before", n)
		}
		// This one Caddy gets itself, which shows that the ACME server notices.
		go s.handshake(&tls.Config{ServerName: missing, InsecureSkipVerify: true})
		testnet.Eventually(t, 30*time.Second, func() error {
			if s.orders.Load() == 0 {
				return errors.New("the ACME server was not asked")
			}
			return nil
		})
	})
}

// TestSiteWithoutNames lets clients choose the name: they must not be able to have Caddy
// order certificates for it.
func TestSiteWithoutNames(t *testing.T) {
	s := newServer(t)
	f := ecdsaPair(t, domain, "127.0.0.1").write(t, t.TempDir())
	for _, tt := range []struct {
		name, address string
		servers       []string // that clients ask for; nothing is no name
	}{
		{"no names", ":" + s.https, []string{domain, ""}},
		{"a wildcard", "*.duckdns.org", []string{domain}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.load(t, fmt.Sprintf(`
				%s {
					bind 127.0.0.1
					tls {
						get_certificate file %s %s
					}
					respond "hello"
				}`, tt.address, f.certificate, f.key))
			for _, server := range tt.servers {
				leaf, err := s.handshake(&tls.Config{ServerName: server, InsecureSkipVerify: true})
				if err != nil {
					t.Fatalf("asking for %q: %v", server, err)
				}
				if !slices.Contains(leaf.DNSNames, domain) {
					t.Errorf("asking for %q: got a certificate for %v", server, leaf.DNSNames)
				}
			}
			if leaf, err := s.handshake(&tls.Config{ServerName: "other.duckdns.org", InsecureSkipVerify: true}); err == nil {
				t.Errorf("got a certificate for %v", leaf.DNSNames)
			}
			if n := s.orders.Load(); n != 0 {
				t.Errorf("the ACME server was asked %d times", n)
			}
		})
	}
}

// TestReload loads one configuration after another, good and bad ones: only what is in
// force looks at files.
func TestReload(t *testing.T) {
	s := newServer(t)
	first, second := ecdsaPair(t, domain).write(t, t.TempDir()), ecdsaPair(t, ecdsaOnly).write(t, t.TempDir())
	site := func(name string, f files) string {
		return fmt.Sprintf("%s {\n\tbind 127.0.0.1\n\ttls {\n\t\tget_certificate file %s %s\n\t}\n\trespond hello\n}\n", name, f.certificate, f.key)
	}
	both := site(domain, first) + site(ecdsaOnly, second)
	for range 3 {
		s.load(t, both)
	}
	expectWatchers(t, 2)

	remove(t, second.key)
	err := s.try(t, both)
	if err == nil || !strings.Contains(err.Error(), "reading the certificate's key: stat "+second.key) {
		t.Errorf("got %v", err)
	}
	expectWatchers(t, 2)
	if _, err := s.handshake(&tls.Config{ServerName: ecdsaOnly, InsecureSkipVerify: true}); err != nil {
		t.Errorf("after a configuration was refused: %v", err)
	}

	s.load(t, site(domain, first))
	expectWatchers(t, 1)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	expectWatchers(t, 0)
}

// TestOwnCertificate reloads a site that had a certificate of Caddy's own: Caddy keeps
// it, and the log says so.
func TestOwnCertificate(t *testing.T) {
	s := newServer(t)
	f := ecdsaPair(t, domain).write(t, t.TempDir())
	issuer := func(leaf *x509.Certificate, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return leaf.Issuer.CommonName
	}
	config := &tls.Config{ServerName: domain, InsecureSkipVerify: true}
	fromFiles := fmt.Sprintf("%s {\n\tbind 127.0.0.1\n\ttls {\n\t\tissuer internal\n\t\tget_certificate file %s %s\n\t}\n\trespond hello\n}\n", domain, f.certificate, f.key)

	s.load(t, domain+" {\n\tbind 127.0.0.1\n\ttls internal\n\trespond hello\n}\n")
	testnet.Eventually(t, 30*time.Second, func() error {
		_, err := s.handshake(config) // it is made in the background
		return err
	})
	s.load(t, fromFiles)
	if got := issuer(s.handshake(config)); got == "test" {
		t.Fatal("the file's certificate is served, so the warning is no longer true")
	}
	messages := explanations(t)
	if want := "serving other certificates than those in files, since Caddy has its own [" + domain + "]"; !slices.Equal(messages, []string{want}) {
		t.Errorf("got  %q\nwant %q", messages, want)
	}

	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.load(t, fromFiles)
	if got := issuer(s.handshake(config)); got != "test" {
		t.Errorf("after a restart, a certificate of %q is served", got)
	}
	if messages := explanations(t); len(messages) > 0 {
		t.Errorf("got %q", messages)
	}
}

// server is a Caddy in this process, and an ACME server that only counts.
type server struct {
	folder, http, https string
	ca                  string
	orders              atomic.Int32
}

func newServer(t *testing.T) *server {
	t.Helper()
	ca, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ca.Close() })
	s := &server{
		folder: t.TempDir(),
		http:   strconv.Itoa(testnet.FreePort(t, "tcp")),
		https:  strconv.Itoa(testnet.FreePort(t, "tcp")),
		ca:     ca.Addr().String(),
	}
	go func() {
		for {
			conn, err := ca.Accept()
			if err != nil {
				return
			}
			s.orders.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() { caddy.Stop() })
	return s
}

// load has Caddy run the sites of a Caddyfile.
func (s *server) load(t *testing.T, sites string) {
	t.Helper()
	if err := s.try(t, sites); err != nil {
		t.Fatal(err)
	}
}

func (s *server) try(t *testing.T, sites string) error {
	t.Helper()
	text := fmt.Sprintf("{\n\tadmin off\n\tpersist_config off\n\tskip_install_trust\n\tstorage file_system %s\n\thttp_port %s\n\thttps_port %s\n\tacme_ca https://%s/directory\n\tlog {\n\t\toutput file %s\n\t}\n}\n",
		filepath.Join(s.folder, "storage"), s.http, s.https, s.ca, filepath.Join(s.folder, "log")) + sites
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return caddy.Load(adapted, true)
}

// handshake connects and returns the server's certificate.
func (s *server) handshake(config *tls.Config) (*x509.Certificate, error) {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second}, Config: config}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", "127.0.0.1:"+s.https)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// get asks for the page / of the domain.
func (s *server) get(t *testing.T, transport http.RoundTripper, url string) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = domain
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

// explanations are what the running configuration's Managers explain.
func explanations(t *testing.T) (messages []string) {
	t.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured("tls")
	if err != nil {
		t.Fatal(err)
	}
	running := app.(*caddytls.TLS)
	if !isActive(running) || isActive(new(caddytls.TLS)) {
		t.Error("another configuration than the running one is taken for it")
	}
	core, logs := observer.New(zapcore.DebugLevel)
	for _, policy := range running.Automation.Policies {
		for _, manager := range managers(policy) {
			manager.explain(zap.New(core))
		}
	}
	for _, entry := range logs.All() {
		messages = append(messages, fmt.Sprint(entry.Message, " ", entry.ContextMap()["names"]))
	}
	return messages
}

// expectWatchers waits until so many pairs of files are looked after.
func expectWatchers(t *testing.T, want int) {
	t.Helper()
	testnet.Eventually(t, 30*time.Second, func() error {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if got := strings.Count(string(stacks), "certfile.(*watcher).run("); got != want {
			return fmt.Errorf("%d pairs of files are looked after, not %d", got, want)
		}
		return nil
	})
}
