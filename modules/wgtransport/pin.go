package wgtransport

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// pinPrefix is that of curl's --pinnedpubkey.
const pinPrefix = "sha256//"

// pinHelp says what a pin is.
const pinHelp = "the hash of a public key, sha256// and 44 characters of base64; the log has it when a machine at home has made its certificate itself"

// pin is a hash of a certificate's public key (its SubjectPublicKeyInfo; RFC 7469,
// section 2.4).
type pin [sha256.Size]byte

func pinOf(certificate *x509.Certificate) pin {
	return sha256.Sum256(certificate.RawSubjectPublicKeyInfo)
}

// String is the pin as it is configured.
func (p pin) String() string { return pinPrefix + base64.StdEncoding.EncodeToString(p[:]) }

func parsePin(text string) (p pin, err error) {
	encoded, ok := strings.CutPrefix(text, pinPrefix)
	hash, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(hash) != len(p) {
		return pin{}, fmt.Errorf("%q is not %s", text, pinHelp)
	}
	return pin(hash), nil
}

// pinError says which key a server has that should have another.
type pinError struct{ found pin }

func (e pinError) Error() string {
	return fmt.Sprintf("the certificate's public key is %s, and tls_pin names another", e.found)
}

// enableTLSForPins turns TLS on where there are pins.
func (t *Transport) enableTLSForPins() {
	if len(t.TLSPin) > 0 && t.TLS == nil {
		t.TLS = new(reverseproxy.TLSConfig)
	}
}

// checkPins says whether the pins can work.
func (t *Transport) checkPins() error {
	if len(t.TLSPin) == 0 {
		return nil
	}
	for _, text := range t.TLSPin {
		if _, err := parsePin(text); err != nil {
			return err
		}
	}
	switch config := t.TLS; {
	case config.InsecureSkipVerify:
		return errors.New("tls_pin does not work with tls_insecure_skip_verify: remove that, the pin replaces it")
	case len(config.CARaw) > 0 || len(config.RootCAPool) > 0 || len(config.RootCAPEMFiles) > 0:
		return errors.New("tls_pin does not work with authorities to trust: the certificate with that public key is the right one, whoever has issued it; remove tls_trust_pool")
	}
	return nil
}

// pinned makes a TLS configuration accept certificates by their public keys alone.
func (t *Transport) pinned(config *tls.Config) {
	if len(t.TLSPin) == 0 {
		return
	}
	var pins []pin
	for _, text := range t.TLSPin {
		pin, _ := parsePin(text) // checkPins has seen it
		pins = append(pins, pin)
	}
	config.InsecureSkipVerify = true
	// It is called for resumed connections too, which VerifyPeerCertificate is not.
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if found := pinOf(state.PeerCertificates[0]); !slices.Contains(pins, found) {
			return pinError{found}
		}
		return nil
	}
}

// verifiesName says whether a certificate must be for the name that is asked for.
func (t *Transport) verifiesName() bool {
	return !t.TLS.InsecureSkipVerify && len(t.TLSPin) == 0
}

// longLife is more than certificates have that are renewed by themselves, mostly with
// another key: those of public authorities, and of a Caddy at home.
const longLife = 400 * 24 * time.Hour

// pinHint says how a certificate that failed can be trusted all the same, if its key is
// likely to stay.
func pinHint(err error) string {
	var failed *tls.CertificateVerificationError
	if !errors.As(err, &failed) || len(failed.UnverifiedCertificates) == 0 {
		return ""
	}
	leaf := failed.UnverifiedCertificates[0]
	var authority x509.UnknownAuthorityError
	lasts := errors.As(err, &authority) && leaf.NotAfter.Sub(leaf.NotBefore) > longLife
	if !lasts && !bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
		return ""
	}
	return fmt.Sprintf(", or, if the upstream made this certificate itself, trust its key: tls_pin %s", pinOf(leaf))
}
