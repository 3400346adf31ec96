package tests

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/fakeduckdns"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// Addresses of what the internet offers to ACME clients, in its core.
const (
	nameServerIP  = "198.18.0.53"
	duckDNSIP     = "198.18.0.80"
	letsEncryptIP = "198.18.0.81"

	letsEncrypt = "acme-v02.api.letsencrypt.org"
	duckDNS     = "www.duckdns.org"
	duckToken   = "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61"
)

// acmeWorld is Let's Encrypt and DuckDNS under their own names, so that a
// relay needs no other Caddyfile for them: pebble, the ACME server for tests,
// behind the address of Let's Encrypt's directory, and a fake DuckDNS with
// its one TXT value per domain, which pebble asks for the challenges.
type acmeWorld struct {
	ca      *testnet.CA // of the two
	duckDNS *fakeduckdns.Server
	pebble  *testnet.Process
	client  *http.Client // in the core, for pebble's management
}

// newACMEWorld starts an acmeWorld in the core of an internet, for the relay
// that is started next. validity is the certificates'; for refused names there are
// none.
func newACMEWorld(t *testing.T, internet *testnet.Internet, validity time.Duration, refused ...string) *acmeWorld {
	t.Helper()
	core := internet.Core
	for _, ip := range []string{nameServerIP, duckDNSIP, letsEncryptIP} {
		core.IP(t, "addr add "+ip+"/32 dev lo")
	}
	w := &acmeWorld{
		ca:      testnet.NewCA(t, "the internet's CA"),
		duckDNS: fakeduckdns.New(duckToken, "example", "example-vm"),
	}
	for name, ip := range map[string]string{
		fakeduckdns.NameServer: nameServerIP,
		duckDNS:                duckDNSIP,
		letsEncrypt:            letsEncryptIP,
	} {
		w.duckDNS.Host(name, netip.MustParseAddr(ip))
	}
	w.duckDNS.ListenDNS(t,
		core.ListenPacket(t, "udp", nameServerIP+":53"),
		core.Listen(t, "tcp", nameServerIP+":53"))

	serveTLS(t, core.Listen(t, "tcp", duckDNSIP+":443"), w.ca.Issue(t, duckDNS), w.duckDNS)
	w.startPebble(t, core, w.ca.Issue(t, "localhost"), validity, refused)
	front := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: "localhost:14000"})
			r.Out.Host = r.In.Host // pebble makes its URLs with it
			if r.In.URL.Path == "/directory" {
				r.Out.URL.Path = "/dir"
			}
		},
		Transport: &http.Transport{DialContext: core.Dial, TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()}},
	}
	serveTLS(t, core.Listen(t, "tcp", letsEncryptIP+":443"), w.ca.Issue(t, letsEncrypt), front)
	w.client = &http.Client{Transport: front.Transport, Timeout: 10 * time.Second}

	serveNames(t, internet.Relay)

	for _, namespace := range []*testnet.Namespace{internet.Client, internet.Relay, internet.Home} {
		namespace.Setenv("SSL_CERT_FILE", w.ca.File)
		namespace.Setenv("SSL_CERT_DIR", "/nonexistent")
		namespace.Setenv("DUCKDNS_TOKEN", duckToken)
	}
	return w
}

// setRecords sets addresses of example.duckdns.org, as a query has them: ip=… or ipv6=….
func (w *acmeWorld) setRecords(t *testing.T, records string) {
	t.Helper()
	answer := httptest.NewRecorder()
	w.duckDNS.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/update?domains=example&token="+duckToken+"&"+records, nil))
	if answer.Body.String() != "OK" {
		t.Fatalf("setting the records: %s", answer.Body)
	}
}

// serveNames makes the internet's DNS that of a namespace: ip(8) mounts this file over
// the machine's in every process that is started in it from now on.
func serveNames(t *testing.T, namespace *testnet.Namespace) {
	t.Helper()
	testnet.WriteFile(t, filepath.Join("/etc/netns", namespace.Name, "resolv.conf"), []byte("nameserver "+nameServerIP+"\n"), 0o644)
}

// startPebble starts pebble on the loopback addresses of a namespace.
func (w *acmeWorld) startPebble(t *testing.T, namespace *testnet.Namespace, cert testnet.Certificate, validity time.Duration, refused []string) {
	t.Helper()
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress":           "127.0.0.1:14000",
		"managementListenAddress": "127.0.0.1:15000",
		"certificate":             cert.Cert,
		"privateKey":              cert.Key,
		"httpPort":                80,
		"tlsPort":                 443,
		"keyAlgorithm":            "ecdsa",
		"domainBlocklist":         refused,
		"retryAfter":              map[string]int{"authz": 1, "order": 1},
		"profiles":                map[string]any{"default": map[string]any{"validityPeriod": int(validity.Seconds())}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(testnet.Folder(t), "pebble.json")
	testnet.WriteFile(t, path, config, 0o644)
	pebble := testnet.Build(t, "HOMEWARD_PEBBLE", "pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble",
		"-modfile="+filepath.Join(testnet.Root(), "tests/pebble/go.mod"))
	cmd := namespace.Command(pebble, "-config", path, "-dnsserver", nameServerIP+":53")
	cmd.Env = append(cmd.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_AUTHZREUSE=0")
	w.pebble = testnet.Start(t, "pebble", cmd)
	w.pebble.WaitLog(t, 0, "ACME directory available", 20*time.Second)
}

// roots are what certificates that pebble issues end at. They are new at
// every start of it.
func (w *acmeWorld) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	response, err := w.client.Get("https://localhost:15000/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var pem bytes.Buffer
	if _, err := pem.ReadFrom(response.Body); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem.Bytes()) {
		t.Fatalf("no certificate from pebble: %s", pem.String())
	}
	return pool
}

// serveTLS serves HTTPS until the test ends.
func serveTLS(t *testing.T, listener net.Listener, cert testnet.Certificate, handler http.Handler) {
	t.Helper()
	server := &http.Server{
		Handler:   handler,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert.Load(t)}},
		ErrorLog:  log.New(t.Output(), "", 0),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.ServeTLS(listener, "", "")
	}()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
}

// certificate is what the relay shows a client that asks for name.
func certificate(ctx context.Context, internet *testnet.Internet, roots *x509.CertPool, name string) (*x509.Certificate, error) {
	return certificateAt(ctx, internet.Client, testnet.RelayIP+":443", roots, name)
}

// certificateAt is what the server at an address shows a client that asks for name.
func certificateAt(ctx context.Context, client *testnet.Namespace, address string, roots *x509.CertPool, name string) (*x509.Certificate, error) {
	conn, err := client.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	secure := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: roots})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return secure.ConnectionState().PeerCertificates[0], nil
}

// waitCertificates waits until every name has a certificate, and another one
// than known has, and returns them.
func waitCertificates(t *testing.T, internet *testnet.Internet, roots *x509.CertPool, names []string, known map[string]*x509.Certificate, timeout time.Duration) map[string]*x509.Certificate {
	t.Helper()
	certs := make(map[string]*x509.Certificate)
	testnet.Eventually(t, timeout, func() error {
		for _, name := range names {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			cert, err := certificate(ctx, internet, roots, name)
			cancel()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if cert.Equal(known[name]) {
				return fmt.Errorf("%s: still the certificate that ends at %v", name, cert.NotAfter)
			}
			certs[name] = cert
		}
		return nil
	})
	return certs
}

// waitUpdate waits until an order has its turn and has set a TXT value.
func (w *acmeWorld) waitUpdate(t *testing.T) {
	t.Helper()
	testnet.Eventually(t, 20*time.Second, func() error {
		if len(w.duckDNS.Updates()) == 0 {
			return errors.New("no order has set a TXT value")
		}
		return nil
	})
}

// checkCollisions checks that no order has overwritten or removed another's
// TXT value, and returns the number of changes.
func (w *acmeWorld) checkCollisions(t *testing.T) int {
	t.Helper()
	updates := w.duckDNS.Updates()
	for _, update := range updates {
		if collision := update.Collision(); collision != "" {
			t.Errorf("collision at %s", collision)
		}
	}
	return len(updates)
}

// checkTurns checks that no order got in another's way.
func (w *acmeWorld) checkTurns(t *testing.T, relay *testnet.Relay, names []string) {
	t.Helper()
	if updates := w.checkCollisions(t); updates < 2*len(names) {
		t.Errorf("%d updates of the TXT value for %d names", updates, len(names))
	}
	checkOrders(t, relay)
}

// checkOrders checks that no order failed, and that the token is not in the log.
func checkOrders(t *testing.T, relay *testnet.Relay) {
	t.Helper()
	for line := range strings.Lines(relay.Log.String()) {
		for _, bad := range []string{"challenge failed", "could not get certificate", "will retry", "cleaning up solver", `"level":"error"`} {
			if strings.Contains(line, bad) {
				t.Errorf("the relay logged: %s", line)
				break
			}
		}
	}
	if strings.Contains(relay.Log.String(), duckToken) {
		t.Error("the relay logged the DuckDNS token")
	}
}

// acmeCaddyfile is the flagship's TLS in small, for any number of names.
func acmeCaddyfile(t *testing.T, relay *testnet.Relay, options string, names []string) string {
	t.Helper()
	return acmeOptions(t, relay, options) + fmt.Sprintf(`
%s {
	tls {
		dns duckdns {env.DUCKDNS_TOKEN}
	}
	respond "hello"
}
`, strings.Join(names, ", "))
}

// acmeOptions are a Caddyfile's global options with a tunnel.
func acmeOptions(t *testing.T, relay *testnet.Relay, options string) string {
	t.Helper()
	keys := testnet.NewTunnelKeys(t)
	return fmt.Sprintf(`{
	%s
	wireguard wg0 {
		private_key {file.%s}
		address %s/24
		peer home {
			public_key %s
			allowed_ips %s/32
		}
	}
}
`, options, relay.Secret(t, "wg0.key", keys.Relay.Private), testnet.RelayTunnelIP, keys.Home.Public, testnet.HomeTunnelIP)
}

// TestACMETurns is DNS-01 for several names of one DuckDNS domain, which has
// one TXT value: a relay that starts for the first time gets all certificates
// at the first attempt.
func TestACMETurns(t *testing.T) {
	t.Parallel() // they mostly wait
	for _, tt := range []struct {
		name  string
		names []string
	}{
		{"two names", []string{testnet.Domain, testnet.Subdomain}},
		{"five names", []string{testnet.Domain, testnet.Subdomain,
			"a.example.duckdns.org", "b.example.duckdns.org", "c.b.example.duckdns.org"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			internet := testnet.NewInternet(t)
			world := newACMEWorld(t, internet, 90*24*time.Hour)
			relay := testnet.NewRelay(t, internet.Relay)
			defer world.checkTurns(t, relay, tt.names)
			relay.Start(t, acmeCaddyfile(t, relay, "", tt.names))
			waitCertificates(t, internet, world.roots(t), tt.names, nil, time.Duration(len(tt.names))*20*time.Second)
			if waits := strings.Count(relay.Log.String(), "waiting for a turn"); waits == 0 || waits >= len(tt.names) {
				t.Errorf("%d of %d orders logged that they waited", waits, len(tt.names))
			}
		})
	}
}

// TestACMEDelegated is a name of another domain that leaves its challenges to
// DuckDNS: it shares the TXT value with those below the DuckDNS domain.
func TestACMEDelegated(t *testing.T) {
	t.Parallel() // it mostly waits
	const delegated = "www.example.net"
	internet := testnet.NewInternet(t)
	world := newACMEWorld(t, internet, 90*24*time.Hour)
	world.duckDNS.Alias("_acme-challenge."+delegated, testnet.Domain)
	relay := testnet.NewRelay(t, internet.Relay)
	names := []string{testnet.Subdomain, delegated}
	defer world.checkTurns(t, relay, names)
	relay.Start(t, acmeCaddyfile(t, relay, "", names[:1])+`
`+delegated+` {
	tls {
		dns duckdns {
			api_token {env.DUCKDNS_TOKEN}
			override_domain `+testnet.Domain+`
		}
	}
	respond "hello"
}
`)
	waitCertificates(t, internet, world.roots(t), names, nil, 40*time.Second)
}

// TestACMEFailedOrder is an order that fails. While certmagic waits to try it
// again, others have their turns.
func TestACMEFailedOrder(t *testing.T) {
	t.Parallel() // it mostly waits
	// pebble panics over a name with fewer labels than a refused one.
	const refused = "refused.example.duckdns.org"
	names := []string{"a.example.duckdns.org", "b.example.duckdns.org"}
	internet := testnet.NewInternet(t)
	world := newACMEWorld(t, internet, 90*24*time.Hour, refused)
	relay := testnet.NewRelay(t, internet.Relay)
	defer world.checkCollisions(t)
	relay.Start(t, acmeCaddyfile(t, relay, "", []string{refused}))
	relay.WaitLog(t, 0, `"msg":"will retry"`, 20*time.Second)
	if out, err := relay.Reload(t, acmeCaddyfile(t, relay, "", append(names, refused))); err != nil {
		t.Fatalf("reloading: %v\n%s", err, out)
	}
	// The next attempt at the refused one is after a minute.
	waitCertificates(t, internet, world.roots(t), names, nil, 45*time.Second)
}

// TestACMERenewals is the same for renewals, which certmagic runs elsewhere:
// at the start when certificates are due, and by its maintenance.
func TestACMERenewals(t *testing.T) {
	t.Parallel() // they mostly wait
	names := []string{testnet.Domain, testnet.Subdomain}
	t.Run("at the start", func(t *testing.T) {
		t.Parallel()
		internet := testnet.NewInternet(t)
		world := newACMEWorld(t, internet, 30*time.Second)
		relay := testnet.NewRelay(t, internet.Relay)
		caddyfile := acmeCaddyfile(t, relay, "", names)
		relay.Start(t, caddyfile)
		roots := world.roots(t)
		certs := waitCertificates(t, internet, roots, names, nil, 40*time.Second)
		world.checkTurns(t, relay, names)
		relay.Stop()
		testnet.Eventually(t, time.Minute, func() error {
			for name, cert := range certs {
				// certmagic renews when a third is left.
				if due := cert.NotAfter.Add(-10 * time.Second); time.Now().Before(due) {
					return fmt.Errorf("%s is due at %v", name, due)
				}
			}
			return nil
		})
		defer world.checkTurns(t, relay, names)
		relay.Start(t, caddyfile)
		waitCertificates(t, internet, roots, names, certs, 40*time.Second)
	})
	t.Run("by maintenance", func(t *testing.T) {
		t.Parallel()
		if testing.Short() {
			t.Skip("waits more than a minute for certificates to be due")
		}
		internet := testnet.NewInternet(t)
		// Two thirds of this are more than the minute for which the relay
		// takes it that a resolver remembers the last TXT value.
		world := newACMEWorld(t, internet, 100*time.Second)
		relay := testnet.NewRelay(t, internet.Relay)
		defer world.checkTurns(t, relay, names)
		// The interval is longer than the first orders take, so that both
		// certificates are found due together.
		relay.Start(t, acmeCaddyfile(t, relay, "renew_interval 14s", names))
		roots := world.roots(t)
		certs := waitCertificates(t, internet, roots, names, nil, 40*time.Second)
		waitCertificates(t, internet, roots, names, certs, 120*time.Second)
	})
}

// TestACMEReload reloads while an order has its turn. The order's last act,
// after its configuration has gone, is to remove its TXT value.
func TestACMEReload(t *testing.T) {
	t.Parallel() // it mostly waits
	internet := testnet.NewInternet(t)
	world := newACMEWorld(t, internet, 90*24*time.Hour)
	world.duckDNS.RemovalDelay = 4 * time.Second
	before := []string{testnet.Domain, testnet.Subdomain}
	after := []string{"a.example.duckdns.org", "b.example.duckdns.org"}
	relay := testnet.NewRelay(t, internet.Relay)
	relay.Start(t, acmeCaddyfile(t, relay, "", before))
	world.waitUpdate(t)
	if out, err := relay.Reload(t, acmeCaddyfile(t, relay, "", after)); err != nil {
		t.Fatalf("reloading: %v\n%s", err, out)
	}
	waitCertificates(t, internet, world.roots(t), after, nil, 40*time.Second)
	world.checkCollisions(t)
	if strings.Contains(relay.Log.String(), "challenge failed") {
		t.Error("a challenge failed")
	}
}

// TestACMERestart ends a relay in the middle of an order, kindly and not.
func TestACMERestart(t *testing.T) {
	t.Parallel() // they mostly wait
	for _, tt := range []struct {
		name string
		end  func(*testnet.Relay)
		lock bool // left behind
	}{
		{"stopped", func(r *testnet.Relay) { r.Stop() }, false},
		{"killed", func(r *testnet.Relay) { r.Kill() }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			internet := testnet.NewInternet(t)
			world := newACMEWorld(t, internet, 90*24*time.Hour)
			names := []string{testnet.Domain, testnet.Subdomain}
			relay := testnet.NewRelay(t, internet.Relay)
			caddyfile := acmeCaddyfile(t, relay, "", names)
			relay.Start(t, caddyfile)
			world.waitUpdate(t)
			tt.end(relay)
			locks, err := filepath.Glob(filepath.Join(relay.Folder, "data/caddy/locks/homeward*"))
			if err != nil || len(locks) > 0 != tt.lock {
				t.Errorf("left behind: %v, %v", locks, err)
			}
			relay.Start(t, caddyfile)
			waitCertificates(t, internet, world.roots(t), names, nil, 60*time.Second)
			if strings.Contains(relay.Log.String(), "challenge failed") {
				t.Error("a challenge failed")
			}
		})
	}
}
