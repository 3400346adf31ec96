package certfile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// pair is a certificate of its own issuer and its key, in PEM.
type pair struct{ certificate, key []byte }

// newPair makes a pair whose life began an hour ago.
func newPair(t testing.TB, life time.Duration, key crypto.Signer, names ...string) pair {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(-time.Hour).Add(life),
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}
}

const quarter = 90 * 24 * time.Hour

// ecdsaPair is one like Let's Encrypt's.
func ecdsaPair(t testing.TB, names ...string) pair {
	t.Helper()
	return newPair(t, quarter, ecdsaKey(t), names...)
}

func ecdsaKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rsaKey is always the same one, since it takes long to make.
var rsaKey = sync.OnceValue(func() crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// write writes the pair into a folder, as cert.pem and key.pem.
func (p pair) write(t testing.TB, folder string) files {
	t.Helper()
	f := files{certificate: filepath.Join(folder, "cert.pem"), key: filepath.Join(folder, "key.pem")}
	writeFile(t, f.certificate, p.certificate)
	writeFile(t, f.key, p.key)
	return f
}

// expectNoKey fails if a text has a part of the pair's key.
func (p pair) expectNoKey(t testing.TB, text string) {
	t.Helper()
	for line := range strings.Lines(string(p.key)) {
		if line = strings.TrimSpace(line); len(line) >= 16 && !strings.HasPrefix(line, "-----") && strings.Contains(text, line[:16]) {
			t.Errorf("a part of the key is in %q", text)
		}
	}
}

func writeFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
