package tests

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// alpnOnly are global options with which TLS-ALPN-01 (RFC 8737) is the only way to a
// certificate, and with which it is soon renewed.
const alpnOnly = `
	cert_issuer acme {
		disable_http_challenge
	}
	renew_interval 3s
`

// passthroughHome is caddyfile-examples/home.Caddyfile with the changes that it names for a
// relay that passes TLS on.
func (w *world) passthroughHome(t *testing.T, own *testnet.Relay, options string) string {
	t.Helper()
	caddyfile := substitute(t, "caddyfile-examples/home.Caddyfile", map[string]string{
		exampleDNS01:              "",
		"/var/lib/caddy/homeward": own.Folder + "/storage",
		"/var/log/caddy":          own.Folder,
		"/etc/caddy/wg0.key":      own.Folder + "/wg0.key",
		exampleRelayKey:           w.keys.Relay.Public,
		"	servers wireguard/wg0:443 {\n		trusted_proxies static 10.77.0.1\n	}\n": "",
	})
	return replace(t, caddyfile, "\n	wireguard wg0 {\n", options+"\n	wireguard wg0 {\n")
}

// TestTLSALPN has home, which is our binary, get and renew its certificates by TLS-ALPN-01,
// through a relay that passes TLS on: by IPv4 the authority asks through the relay, and once
// there is an AAAA record, directly.
func TestTLSALPN(t *testing.T) {
	w := newWorld(t)
	internet := newACMEWorld(t, w.Internet, 30*time.Second)
	serveNames(t, w.Home)
	whoIsThere(t, w.Home, "127.0.0.1:8080")
	own := newOwnHome(t, w)
	for _, end := range []*testnet.Relay{w.relay, own} {
		end.UseBinary(testnet.FastCaddy(t))
	}
	internet.setRecords(t, "ip="+testnet.RelayIP)
	w.relay.Start(t, substitute(t, "caddyfile-examples/passthrough.Caddyfile", w.paths(nil)))
	own.Start(t, w.passthroughHome(t, own, alpnOnly))
	unprivileged(t, w.relay, own)

	names := []string{testnet.Domain, testnet.Subdomain}
	roots := internet.roots(t)
	first := waitCertificates(t, w.Internet, roots, names, nil, 60*time.Second)
	for _, name := range names {
		own.WaitLog(t, 0, validated(name, testnet.RelayTunnelIP+":"), time.Second)
	}
	if directly := regexp.MustCompile(validated("", "[2001:db8:")).FindString(own.Log.String()); directly != "" {
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

// validated matches the line in the log of a Caddy that has answered an authority's
// TLS-ALPN-01 handshake, for a name from an address.
func validated(name, remote string) string {
	return `"msg":"served key authentication certificate","server_name":"` + regexp.QuoteMeta(name) + `.*"remote":"` + regexp.QuoteMeta(remote)
}

// noOrders wants a Caddy to have had nothing to do with certificates for names.
func noOrders(t *testing.T, relay *testnet.Relay, names ...string) {
	t.Helper()
	for line := range strings.Lines(relay.Log.String()) {
		for _, name := range names {
			if strings.Contains(line, `"`+name+`"`) && (strings.Contains(line, `"logger":"tls`) || strings.Contains(line, "challenge")) {
				t.Errorf("the relay has logged of home's certificates: %s", line)
			}
		}
	}
	for _, name := range names {
		if kept, _ := filepath.Glob(filepath.Join(relay.Folder, "storage", "certificates", "*", name)); len(kept) > 0 {
			t.Errorf("the relay keeps %q", kept)
		}
	}
}
