package tests

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestHomeCertificate has home get and renew its certificate itself, with dehydrated as
// it comes and HTTP-01, where A is the relay and AAAA is home: the authority may ask by
// either.
func TestHomeCertificate(t *testing.T) {
	t.Parallel() // it mostly waits
	testnet.Need(t, "dehydrated")
	w := newWorld(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	apache := services.StartApache(t, w.Home, w.private)
	internet := newACMEWorld(t, w.Internet, 24*time.Hour)
	serveNames(t, w.Home)
	// By IPv6 the authority comes in by home's own line.
	w.Router.NFT(t, `add rule inet filter forward meta nfproto ipv6 tcp dport 80 accept`)
	w.start(t, substitute(t, "caddyfile-examples/passthrough.Caddyfile", w.paths(nil)))

	folder := testnet.Folder(t)
	challenges := filepath.Join(apache.Folder, testnet.Domain, ".well-known/acme-challenge")
	if err := os.MkdirAll(challenges, 0o755); err != nil {
		t.Fatal(err)
	}
	// Its RSA keys of 4096 bits would take slow machines a minute.
	testnet.WriteFile(t, filepath.Join(folder, "config"), fmt.Appendf(nil, "BASEDIR=%s\nWELLKNOWN=%s\nACCOUNT_KEYSIZE=2048\nKEY_ALGO=prime256v1\n", folder, challenges), 0o644)
	dehydrated := func(t *testing.T, arguments ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		cmd := w.Home.CommandContext(ctx, "dehydrated", append([]string{"--config", filepath.Join(folder, "config")}, arguments...)...)
		cmd.Env = append(cmd.Environ(), "CURL_CA_BUNDLE="+internet.ca.File)
		out, err := cmd.CombinedOutput()
		t.Logf("dehydrated %s\n%s", strings.Join(arguments, " "), out)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	dehydrated(t, "--register", "--accept-terms")

	roots := internet.roots(t)
	var former *x509.Certificate
	// Where TLS ends at the VM, home's certificate is for the VM to verify, and for visitors
	// who come by IPv6.
	endAtVM := func(t *testing.T) {
		if out, err := w.relay.Reload(t, w.example(t)); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, tt := range []struct {
		name, records, client string
		before                func(*testing.T)
	}{
		{"first, by IPv4 through the relay", "ip=" + testnet.RelayIP, testnet.RelayTunnelIP, nil},
		{"renewed, by IPv4 through a relay where TLS ends", "ip=" + testnet.RelayIP, testnet.RelayTunnelIP, endAtVM},
		{"renewed, by IPv6 directly", "ipv6=" + testnet.HomeIP6, "2001:db8:", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.before != nil {
				tt.before(t)
			}
			internet.setRecords(t, tt.records)
			// However pebble is set, it has one order in a hundred of an account it knows need no
			// challenge: github.com/letsencrypt/pebble/blob/v2.10.1/wfe/wfe.go#L1565.
			challenged := false
			for range 4 {
				out := dehydrated(t, "--cron", "--force", "--domain", testnet.Domain, "--challenge", "http-01")
				if challenged = strings.Contains(out, "Challenge is valid!"); challenged {
					break
				}
			}
			if !challenged {
				t.Fatal("no order needed a challenge")
			}

			content, err := os.ReadFile(filepath.Join(folder, "certs", testnet.Domain, "fullchain.pem"))
			if err != nil {
				t.Fatal(err)
			}
			block, rest := pem.Decode(content)
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			between := x509.NewCertPool()
			between.AppendCertsFromPEM(rest)
			if _, err := certificate.Verify(x509.VerifyOptions{DNSName: testnet.Domain, Roots: roots, Intermediates: between}); err != nil {
				t.Error(err)
			}
			if former != nil && certificate.Equal(former) {
				t.Error("it is the former certificate")
			}
			former = certificate

			log, err := os.ReadFile(apache.AccessLog)
			if err != nil {
				t.Fatal(err)
			}
			line := lastLine(string(log), "GET /.well-known/acme-challenge/")
			if !strings.HasPrefix(line, tt.client) || !strings.Contains(line, " 200 ") {
				t.Errorf("home has logged %q, want the authority from %s", line, tt.client)
			}
		})
	}
}
