package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// world is an internet with a relay that is ready to start and a home that is
// up.
type world struct {
	*testnet.Internet
	keys  testnet.TunnelKeys
	home  *testnet.Home
	relay *testnet.Relay

	// public issues the certificates that clients trust; private those of
	// home, which only the relay needs to trust.
	public, private *testnet.CA
}

// newWorld makes a world. The relay's private key and the preshared key lie
// in its folder as wg0.key and home.psk.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		Internet: testnet.NewInternet(t),
		keys:     testnet.NewTunnelKeys(t),
		public:   testnet.NewCA(t, "public CA"),
		private:  testnet.NewCA(t, "home CA"),
	}
	w.relay = testnet.NewRelay(t, w.Relay)
	w.relay.Secret(t, "wg0.key", w.keys.Relay.Private)
	w.relay.Secret(t, "home.psk", w.keys.Preshared)
	w.home = testnet.StartHome(t, w.Internet, w.keys, testnet.HomeConfig{})
	return w
}

// start starts the relay with a Caddyfile and waits until home has found it.
func (w *world) start(t testing.TB, caddyfile string) {
	t.Helper()
	w.relay.Start(t, caddyfile)
	w.home.WaitHandshake(t)
}

// ports is testdata/ports.Caddyfile, made fit for this world.
func (w *world) ports(t testing.TB) string {
	t.Helper()
	return substitute(t, "tests/testdata/ports.Caddyfile", map[string]string{
		"FOLDER":          w.relay.Folder,
		"HOME_PUBLIC_KEY": w.keys.Home.Public,
		"MTU":             "1280",
	})
}

// sites is testdata/sites.Caddyfile, made fit for this world.
func (w *world) sites(t testing.TB) string {
	t.Helper()
	site := w.public.Issue(t, testnet.Domain, testnet.Subdomain)
	return substitute(t, "tests/testdata/sites.Caddyfile", map[string]string{
		"FOLDER":          w.relay.Folder,
		"HOME_PUBLIC_KEY": w.keys.Home.Public,
		"HOME_CA":         w.private.File,
		"SITE_CERT":       site.Cert,
		"SITE_KEY":        site.Key,
	})
}

// substitute reads a Caddyfile of the repository and replaces what differs
// from one machine to another: keys, names and paths. Each must be in the
// file, so that a test cannot pass with a file that has moved on.
func substitute(t testing.TB, path string, values map[string]string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(testnet.Root(), path))
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for old, value := range values {
		if !strings.Contains(string(content), old) {
			t.Fatalf("%s has no %q", path, old)
		}
		pairs = append(pairs, old, value)
	}
	return strings.NewReplacer(pairs...).Replace(string(content))
}

// replace replaces one part of a Caddyfile that must be there once.
func replace(t testing.TB, text, old, value string) string {
	t.Helper()
	if strings.Count(text, old) != 1 {
		t.Fatalf("the Caddyfile has %q %d times, not once:\n%s", old, strings.Count(text, old), text)
	}
	return strings.Replace(text, old, value, 1)
}
