package tests

import (
	"context"
	"crypto/tls"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// Global options with which there is one way to a certificate.
const (
	tlsALPNOnly = "\n	cert_issuer acme {\n		disable_http_challenge\n	}\n"
	httpOnly    = "\n	cert_issuer acme {\n		disable_tlsalpn_challenge\n	}\n"
)

// passthroughHome is caddyfile-examples/home.Caddyfile as it has to be for a relay that
// passes TLS on, with its own certificates.
func (w *world) passthroughHome(t *testing.T, own *testnet.Relay, options string) string {
	t.Helper()
	return substitute(t, "caddyfile-examples/home.Caddyfile", map[string]string{
		exampleDNS01:              "",
		"# tls you@example.org":   "tls you@example.org",
		"/var/lib/caddy/homeward": own.Folder + "/storage",
		"/var/log/caddy":          own.Folder,
		"/etc/caddy/wg0.key":      own.Folder + "/wg0.key",
		exampleRelayKey:           w.keys.Relay.Public,
		"	servers wireguard/wg0:443 {\n		trusted_proxies static 10.77.0.1\n	}\n": options,
	})
}

// newPassthroughWorld is a world with certificates of pebble's, whose home is our binary.
func newPassthroughWorld(t *testing.T, validity time.Duration) (*world, *acmeWorld, *testnet.Relay) {
	t.Helper()
	w := newWorld(t)
	internet := newACMEWorld(t, w.Internet, validity)
	serveNames(t, w.Home)
	internet.setRecords(t, "ip="+testnet.RelayIP)
	own := newOwnHome(t, w)
	for _, end := range []*testnet.Relay{w.relay, own} {
		end.UseBinary(testnet.FastCaddy(t))
	}
	return w, internet, own
}

// TestTLSALPN has home, which is our binary, get and renew its certificates by TLS-ALPN-01
// (RFC 8737), through a relay that passes TLS on. By IPv4 the authority asks through the
// relay, and once there is an AAAA record, directly.
func TestTLSALPN(t *testing.T) {
	t.Parallel() // it mostly waits
	w, internet, own := newPassthroughWorld(t, 30*time.Second)
	w.relay.Start(t, substitute(t, "caddyfile-examples/passthrough.Caddyfile", w.paths(nil)))
	own.Start(t, w.passthroughHome(t, own, tlsALPNOnly+"	renew_interval 3s\n"))
	unprivileged(t, w.relay, own)

	names := []string{testnet.Domain, testnet.Subdomain}
	roots := internet.roots(t)
	first := waitCertificates(t, w.Internet, roots, names, nil, 60*time.Second)
	for _, name := range names {
		own.WaitLog(t, 0, validated(name, testnet.RelayTunnelIP+":"), 10*time.Second)
	}
	if directly := regexp.MustCompile(validated("", "[")).FindString(own.Log.String()); directly != "" {
		t.Errorf("without an AAAA record home has logged %s", directly)
	}

	internet.setRecords(t, "ipv6="+testnet.HomeIP6)
	mark := own.Log.Len()
	for _, name := range names {
		own.WaitLog(t, mark, validated(name, "[2001:db8:"), 90*time.Second)
	}
	waitCertificates(t, w.Internet, roots, names, first, 60*time.Second)
	noOrders(t, w.relay, names...)
}

// TestHTTPChallenge is HTTP-01 for such a home, which here has no more than the tunnel and
// may not listen at port 80 or 443 of its machine.
func TestHTTPChallenge(t *testing.T) {
	w, internet, own := newPassthroughWorld(t, 24*time.Hour)
	w.Home.Sysctl(t, "net.ipv4.ip_unprivileged_port_start", "1024")
	w.relay.Start(t, substitute(t, "caddyfile-examples/passthrough.Caddyfile", w.paths(nil)))
	own.Start(t, replace(t, w.passthroughHome(t, own, httpOnly), "bind wireguard/wg0 [::]", "bind wireguard/wg0"))
	unprivileged(t, w.relay, own)
	names := []string{testnet.Domain, testnet.Subdomain}
	waitCertificates(t, w.Internet, internet.roots(t), names, nil, 60*time.Second)
	noOrders(t, w.relay, names...)
}

// TestPassthroughSome runs caddyfile-examples/passthrough-some.Caddyfile: each end gets the
// certificates of its own names, and answers for no others. It does not matter which of its
// addresses home names first.
func TestPassthroughSome(t *testing.T) {
	for _, tt := range []struct{ challenge, options string }{
		{"TLS-ALPN-01", tlsALPNOnly},
		{"HTTP-01", httpOnly},
	} {
		t.Run(tt.challenge, func(t *testing.T) {
			w, internet, own := newPassthroughWorld(t, 24*time.Hour)
			internet.duckDNS.Host(testnet.Endpoint, netip.MustParseAddr(testnet.RelayIP))
			w.relay.TrustRoots(internet.ca.File)
			w.relay.Start(t, replace(t, substitute(t, "caddyfile-examples/passthrough-some.Caddyfile", w.paths(nil)),
				"\n	wireguard wg0 {\n", tt.options+"\n	wireguard wg0 {\n"))
			own.Start(t, replace(t, w.passthroughHome(t, own, tt.options), "bind wireguard/wg0 [::]", "bind [::] wireguard/wg0"))

			homes, relays := []string{testnet.Domain, testnet.Subdomain}, testnet.Endpoint
			certs := waitCertificates(t, w.Internet, internet.roots(t), append(homes, relays), nil, 60*time.Second)
			noOrders(t, w.relay, homes...)
			noOrders(t, own, relays)
			for name, cert := range certs {
				if len(cert.DNSNames) != 1 || cert.DNSNames[0] != name {
					t.Errorf("the certificate of %s is for %q", name, cert.DNSNames)
				}
			}

			// Somebody who asks as an authority does, without an order.
			asked := func(name string) string {
				return `tls-alpn challenge.*"server_name":\s*"` + regexp.QuoteMeta(name) + `"`
			}
			for name, end := range map[string]*testnet.Relay{testnet.Domain: own, testnet.Subdomain: own, relays: w.relay} {
				if err := w.askALPN(t, name); err == nil {
					t.Errorf("%s: a challenge that there is not is answered", name)
				}
				end.WaitLog(t, 0, asked(name), 10*time.Second)
				other := map[*testnet.Relay]*testnet.Relay{own: w.relay, w.relay: own}[end]
				if line := regexp.MustCompile(asked(name)).FindString(other.Log.String()); line != "" {
					t.Errorf("%s: the other end has logged %s", name, line)
				}
			}
		})
	}
}

// askALPN begins the handshake of TLS-ALPN-01 at the relay.
func (w *world) askALPN(t *testing.T, name string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := w.Client.Dial(ctx, "tcp", testnet.RelayIP+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return tls.Client(conn, &tls.Config{ServerName: name, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true}).HandshakeContext(ctx)
}

// validated matches the line in the log of a Caddy that has answered an authority's
// TLS-ALPN-01 handshake, for a name that begins so and from an address that does.
func validated(name, remote string) string {
	return `"msg":"served key authentication certificate","server_name":"` + regexp.QuoteMeta(name) + `[^{}]*"remote":"` + regexp.QuoteMeta(remote)
}

// noOrders wants a Caddy to have had nothing to do with certificates for names.
func noOrders(t *testing.T, end *testnet.Relay, names ...string) {
	t.Helper()
	for line := range strings.Lines(end.Log.String()) {
		for _, name := range names {
			if strings.Contains(line, `"`+name+`"`) && (strings.Contains(line, `"logger":"tls`) || strings.Contains(line, "acme")) {
				t.Errorf("an end has logged of the other's certificates: %s", line)
			}
		}
	}
	for _, name := range names {
		kept, err := filepath.Glob(filepath.Join(end.Folder, "storage", "certificates", "*", name))
		if err != nil || len(kept) > 0 {
			t.Errorf("an end keeps %q of the other's (%v)", kept, err)
		}
	}
}
