package tests

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestCertificateFiles renews the example's certificate as certbot does: numbered files
// in a folder, and symlinks in another. New connections get the new certificate without a
// reload, and those that there are go on.
func TestCertificateFiles(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t)
	testnet.Need(t, "curl")
	services.StartApache(t, w.Home, w.private)
	certbot := &certbot{folder: filepath.Join(w.relay.Folder, "letsencrypt")}
	certbot.renew(t, w.public)
	w.start(t, w.exampleWith(t, testnet.Certificate{Cert: certbot.live("fullchain"), Key: certbot.live("privkey")}))

	served := func(t *testing.T) *x509.Certificate {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		leaf, err := certificate(ctx, w.Internet, w.public.Pool(), testnet.Domain)
		if err != nil {
			t.Fatal(err)
		}
		return leaf
	}
	if !served(t).Equal(certbot.leaf) {
		t.Fatal("it is another certificate than the file's")
	}
	connections := 0
	former := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			connections++
			return w.Client.Dial(ctx, network, address)
		},
		TLSClientConfig: &tls.Config{RootCAs: w.public.Pool()},
	}}
	defer former.CloseIdleConnections()
	const page = "https://" + testnet.Domain + "/"
	askFormer := func(t *testing.T) {
		t.Helper()
		response, err := former.Get(page)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != http.StatusOK || connections != 1 {
			t.Errorf("got %s, on connection %d", response.Status, connections)
		}
	}
	askFormer(t)
	formerHTTP3 := w.http3Client(t)
	if got := formerHTTP3(t, "http3", page); got.status != http.StatusOK {
		t.Fatalf("by HTTP/3: got status %d", got.status)
	}

	certbot.renew(t, w.public)
	testnet.Eventually(t, 30*time.Second, func() error {
		if !served(t).Equal(certbot.leaf) {
			return errors.New("it is still the former certificate")
		}
		return nil
	})
	w.relay.WaitLog(t, 0, "serving renewed certificate from files", 10*time.Second)
	askFormer(t)
	for name, get := range map[string]func(*testing.T, string, string) answer{"former": formerHTTP3, "new": w.http3Client(t)} {
		if got := get(t, "http3", page); got.status != http.StatusOK {
			t.Errorf("by HTTP/3 on a %s connection: got status %d", name, got.status)
		}
	}
	if got := w.curl(t, "http2", page); got.status != http.StatusOK {
		t.Errorf("by curl: got status %d", got.status)
	}

	// Here the key is missing at first.
	renewed := certbot.leaf
	certbot.write(t, w.public)
	certbot.relink(t, "fullchain")
	line := w.relay.WaitLog(t, 0, "certificate files cannot be used.*", 30*time.Second)
	if !strings.Contains(line, certbot.live("privkey")) {
		t.Errorf("the log does not name the key's file: %s", line)
	}
	if !served(t).Equal(renewed) {
		t.Error("it is not the certificate that has its key")
	}
	certbot.relink(t, "privkey")
	testnet.Eventually(t, 30*time.Second, func() error {
		if !served(t).Equal(certbot.leaf) {
			return errors.New("it is still the former certificate")
		}
		return nil
	})

	for where, text := range map[string]string{
		"the log":          w.relay.Log.String(),
		"the admin API":    w.relay.Admin(t, "/config/"),
		"Caddy's own copy": autosave(t, w.relay.Folder),
	} {
		for _, secret := range certbot.secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s has a part of a key", where)
			}
		}
	}
	if strings.Contains(w.relay.Log.String(), "obtaining certificate") {
		t.Errorf("the relay has ordered a certificate:\n%s", w.relay.Log.Tail(20))
	}
}

// certbot keeps certificates as certbot does, readable for the relay alone.
type certbot struct {
	folder string
	number int
	leaf   *x509.Certificate
	// secrets are the lines of all keys.
	secrets []string
}

// live is the path to a file that certbot tells its users.
func (c *certbot) live(name string) string {
	return filepath.Join(c.folder, "live", testnet.Domain, name+".pem")
}

// renew gets a certificate and puts it into force.
func (c *certbot) renew(t *testing.T, ca *testnet.CA) {
	t.Helper()
	c.write(t, ca)
	c.relink(t, "privkey")
	c.relink(t, "fullchain")
}

// write gets a certificate.
func (c *certbot) write(t *testing.T, ca *testnet.CA) {
	t.Helper()
	c.number++
	issued := ca.Issue(t, testnet.Domain, testnet.Subdomain)
	for name, path := range map[string]string{"fullchain": issued.Cert, "privkey": issued.Key} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if name == "privkey" {
			c.secrets = append(c.secrets, strings.Split(string(content), "\n")[1:3]...)
		} else {
			block, _ := pem.Decode(content)
			if c.leaf, err = x509.ParseCertificate(block.Bytes); err != nil {
				t.Fatal(err)
			}
		}
		archived := c.archived(name)
		if err := os.MkdirAll(filepath.Dir(archived), 0o755); err != nil {
			t.Fatal(err)
		}
		testnet.WriteFile(t, archived, content, 0o600)
		if err := os.Chown(archived, testnet.RelayUID, testnet.RelayUID); err != nil {
			t.Fatal(err)
		}
	}
}

// relink makes a live file the newest one, by a symlink that is removed and made again.
func (c *certbot) relink(t *testing.T, name string) {
	t.Helper()
	path := c.live(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	to, err := filepath.Rel(filepath.Dir(path), c.archived(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func (c *certbot) archived(name string) string {
	return filepath.Join(c.folder, "archive", testnet.Domain, fmt.Sprintf("%s%d.pem", name, c.number))
}
