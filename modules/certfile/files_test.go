package certfile

import (
	"bytes"
	"encoding/pem"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestLoad(t *testing.T) {
	good, other := ecdsaPair(t, domain), ecdsaPair(t, domain)
	chain := slices.Concat(good.certificate, other.certificate)
	legacy := pem.EncodeToMemory(&pem.Block{
		Type:    "EC PRIVATE KEY",
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00112233445566778899AABBCCDDEEFF"},
		Bytes:   make([]byte, 128),
	})
	block, _ := pem.Decode(good.key)
	for _, tt := range []struct {
		name             string
		certificate, key []byte // a nil key is in the certificate's file
		want             string // of the error, or empty
	}{
		{"a pair", good.certificate, good.key, ""},
		{"a chain", chain, good.key, ""},
		{"with text between", slices.Concat([]byte("subject=example\n"), good.certificate), good.key, ""},
		{"one file", slices.Concat(good.certificate, good.key), nil, ""},
		{"one file, the key first", slices.Concat(good.key, chain), nil, ""},
		{"one file without a key", good.certificate, nil, "cert.pem has no certificate with its key"},
		{"another key", good.certificate, other.key, "key.pem are no pair: tls: private key does not match public key"},
		{"switched", good.key, good.certificate, "are no pair: tls: failed to find certificate PEM data in certificate input, but did find a private key"},
		{"empty certificate", []byte{}, good.key, "cert.pem is empty"},
		{"empty key", good.certificate, []byte{}, "key.pem is empty"},
		{"not in PEM", []byte("\x30\x82\x01"), good.key, "cert.pem is not in PEM"},
		{"key not in PEM", good.certificate, block.Bytes, "key.pem is not in PEM"},
		{"chain cut in the second", chain[:len(chain)-30], good.key, "cert.pem is not whole: of 2 PEM blocks only 1 can be read"},
		{"chain broken in the first", bytes.Replace(chain, []byte("-----END CERTIFICATE-----"), nil, 1), good.key, "cert.pem is not whole"},
		{"key cut", good.certificate, good.key[:len(good.key)-60], "key.pem is not whole: of 1 PEM blocks only 0"},
		{"key with a passphrase", good.certificate, bytes.ReplaceAll(good.key, []byte("PRIVATE KEY"), []byte("ENCRYPTED PRIVATE KEY")), "the key in"},
		{"key with a passphrase, as of old", good.certificate, legacy, "has a passphrase"},
		{"too large", bytes.Repeat(good.certificate, maxFile/len(good.certificate)+1), good.key, "cert.pem is larger than 1 MiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := pair{tt.certificate, tt.key}.write(t, t.TempDir())
			if tt.key == nil {
				f.key = f.certificate
			}
			loaded, err := f.load()
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if want := bytes.Count(tt.certificate, []byte("BEGIN CERTIFICATE")); len(loaded.Certificate) != want {
					t.Errorf("got %d certificates, want %d", len(loaded.Certificate), want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got  %v\nwant %s", err, tt.want)
			}
			good.expectNoKey(t, err.Error())
			other.expectNoKey(t, err.Error())
		})
	}
}

func TestLoadFileSystem(t *testing.T) {
	good := ecdsaPair(t, domain)
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, f files)
		want   []string
	}{
		{"no certificate", func(t *testing.T, f files) { remove(t, f.certificate) },
			[]string{"reading the certificate: ", "cert.pem: no such file", "give the path"}},
		{"no key", func(t *testing.T, f files) { remove(t, f.key) },
			[]string{"reading the certificate's key: ", "key.pem: no such file"}},
		{"a folder", func(t *testing.T, f files) {
			remove(t, f.key)
			if err := os.Mkdir(f.key, 0o700); err != nil {
				t.Fatal(err)
			}
		}, []string{"key.pem is no regular file"}},
		{"a symlink to nothing", func(t *testing.T, f files) {
			remove(t, f.certificate)
			symlink(t, "nowhere", f.certificate)
		}, []string{"cert.pem: no such file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := good.write(t, t.TempDir())
			tt.change(t, f)
			_, err := f.load()
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got  %v\nwant %s", err, want)
				}
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func contains(t *testing.T, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}
