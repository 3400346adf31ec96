package wgtransport

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// selfSigned makes a certificate as machines at home make theirs: its own issuer, for a
// name that nobody asks for.
func selfSigned(t *testing.T, until time.Time) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "nas"},
		NotBefore:    until.Add(-time.Hour),
		NotAfter:     until,
	}
	certificate, key := sign(t, template, nil, nil)
	return &tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key, Leaf: certificate}
}

// TestPin trusts a key, and nothing else.
func TestPin(t *testing.T) {
	for _, versions := range []string{"1.1", "1.1 2", "3"} {
		t.Run(versions, func(t *testing.T) {
			// It has expired, has a name that nobody asks for, and its issuer is itself.
			certificate, other := selfSigned(t, time.Now().Add(-time.Hour)), selfSigned(t, time.Now().Add(time.Hour))
			h := startHome(t, loopbackSockets{}, newAuthority(t))
			h.only.Store(certificate)
			r, _ := newRelay(t)
			upstream := "https://home:" + h.secure
			ask := func(host, transport string) int {
				t.Helper()
				r.mustLoad(t, upstream, "", "versions "+versions+"\n"+transport)
				status, _ := r.get(t, host, "/")
				return status
			}
			if got := ask("a.example", ""); got != http.StatusBadGateway {
				t.Errorf("without a pin: %d", got)
			}
			r.logged(t, `"status":502`, "making a TLS connection with home:"+h.secure, "tls_pin "+pinOf(certificate.Leaf).String())

			pinned := "tls_pin " + pinOf(other.Leaf).String() + "\ntls_pin " + pinOf(certificate.Leaf).String()
			if got := ask("a.example", pinned); got != http.StatusOK {
				t.Errorf("with a pin: %d", got)
			}
			if got := ask("192.0.2.1", pinned); got != http.StatusOK {
				t.Errorf("with a pin, by address: %d", got)
			}
			if got := ask("a.example", "tls_pin "+pinOf(other.Leaf).String()); got != http.StatusBadGateway {
				t.Errorf("with another's pin: %d", got)
			}
			r.logged(t, `"status":502`, "the certificate's public key is "+pinOf(certificate.Leaf).String()+", and tls_pin names another", "write the key that it has now")
		})
	}
}

// TestPinEnablesTLS has JSON say a pin only, which a Caddyfile can say as well.
func TestPinEnablesTLS(t *testing.T) {
	for _, versions := range []string{`["1.1", "2"]`, `["3"]`} {
		ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
		defer cancel()
		tunneled = new(loopback)
		module, err := ctx.LoadModuleByID("http.reverse_proxy.transport.wireguard_loopback", json.RawMessage(
			`{"versions": `+versions+`, "tls_pin": ["sha256//YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE="]}`))
		if err != nil {
			t.Fatal(err)
		}
		if transport := module.(*overLoopback); !transport.TLSEnabled() || transport.tls == nil {
			t.Errorf("versions %s: TLS is off", versions)
		}
	}
}

// TestPinHealthCheck has active health checks that ask for no host, whose certificate needs
// no name.
func TestPinHealthCheck(t *testing.T) {
	certificate := selfSigned(t, time.Now().Add(time.Hour))
	h := startHome(t, loopbackSockets{}, newAuthority(t))
	h.only.Store(certificate)
	r, _ := newRelay(t)
	r.mustLoad(t, "https://home:"+h.secure, "health_uri /health\nhealth_interval 50ms", "tls_pin "+pinOf(certificate.Leaf).String())
	eventually(t, "a health check", func() bool { return len(h.sights()) > 0 })
	if status, _ := r.get(t, "a.example", "/"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
}

// TestPinOf compares with what curl's manual has openssl say.
func TestPinOf(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("needs openssl")
	}
	certificate := selfSigned(t, time.Now().Add(time.Hour))
	file := filepath.Join(t.TempDir(), "cert.pem")
	writePEM(t, file, "CERTIFICATE", certificate.Leaf.Raw)
	out, err := exec.Command("sh", "-c", fmt.Sprintf(
		"%s x509 -in %s -pubkey -noout | %[1]s pkey -pubin -outform der | %[1]s dgst -sha256 -binary | %[1]s base64", openssl, file)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := pinOf(certificate.Leaf).String(), "sha256//"+strings.TrimSpace(string(out)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, err := parsePin(pinOf(certificate.Leaf).String()); err != nil || got != pinOf(certificate.Leaf) {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestCertificateErrors has the log say what is wrong with home's certificate, and what to
// do. A certificate of a known authority's is not offered as one to pin: its key changes.
func TestCertificateErrors(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca)
	now := time.Now()
	for _, test := range []struct {
		name        string
		certificate *tls.Certificate
		want        []string
		pin         bool
	}{
		{"expired", ca.issueUntil(t, now.Add(-time.Hour), "a.example"), []string{"certificate has expired", "; see that the upstream renews its certificate, and that this machine's clock is right"}, false},
		{"another name", ca.issueUntil(t, now.Add(time.Hour), "b.example"), []string{"certificate is valid for b.example, not a.example; the upstream needs a certificate for that name, or set tls_server_name"}, false},
		{"another authority's", newAuthority(t).issueUntil(t, now.Add(time.Hour), "a.example"), []string{"certificate signed by unknown authority", "; let the upstream send its whole chain (fullchain.pem), or trust its issuer with tls_trust_pool"}, false},
		{"its own authority's, for long", newAuthority(t).issueFor(t, now.Add(-time.Hour), now.Add(2*longLife), "a.example"), []string{"certificate signed by unknown authority", ", or, if the upstream made this certificate itself, trust its key: tls_pin sha256//"}, true},
		{"self-signed", selfSigned(t, now.Add(time.Hour)), []string{", or, if the upstream made this certificate itself, trust its key: tls_pin sha256//"}, true},
	} {
		for _, versions := range []string{"1.1 2", "3"} {
			t.Run(test.name+" "+versions, func(t *testing.T) {
				h.only.Store(test.certificate)
				r, _ := newRelay(t)
				r.mustLoad(t, "https://home:"+h.secure, "", fmt.Sprintf("versions %s\ntls_trust_pool file %s", versions, ca.file))
				if status, _ := r.get(t, "a.example", "/"); status != http.StatusBadGateway {
					t.Errorf("status %d", status)
				}
				r.logged(t, append(test.want, `"status":502`, "making a TLS connection with home:"+h.secure)...)
				log, err := os.ReadFile(r.log)
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Contains(string(log), "tls_pin"); got != test.pin {
					t.Errorf("the log offers a pin: %v", got)
				}
			})
		}
	}
}

// TestUnverified has the log say that certificates are not verified.
func TestUnverified(t *testing.T) {
	r, _ := newRelay(t)
	r.mustLoad(t, "https://home", "", "tls_insecure_skip_verify")
	r.logged(t, `"level":"warn"`, "not verifying upstreams' certificates")
}
