package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// world is an internet with a relay and a home that are ready to start.
type world struct {
	*testnet.Internet
	keys  testnet.TunnelKeys
	home  *testnet.Home
	relay *testnet.Relay

	// public issues the certificates that clients trust; private those of
	// home, which only the relay needs to trust.
	public, private *testnet.CA
}

// newWorld makes a world. The relay's private key lies in its folder as
// wg0.key, and its log and its trusted roots are as the examples expect.
func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, testnet.NewTunnelKeys(t))
}

// newWorldWith makes a world with given keys. A preshared key lies in the
// relay's folder as home.psk.
func newWorldWith(t testing.TB, keys testnet.TunnelKeys) *world {
	t.Helper()
	return newWorldIn(t, testnet.NewInternet(t), keys)
}

// newWorldIn makes a world of an internet that there is.
func newWorldIn(t testing.TB, internet *testnet.Internet, keys testnet.TunnelKeys) *world {
	t.Helper()
	w := &world{
		Internet: internet,
		keys:     keys,
		public:   testnet.NewCA(t, "public CA"),
		private:  testnet.NewCA(t, "home CA"),
	}
	w.relay = testnet.NewRelay(t, w.Relay)
	w.relay.Secret(t, "wg0.key", w.keys.Relay.Private)
	if w.keys.Preshared != "" {
		w.relay.Secret(t, "home.psk", w.keys.Preshared)
	}
	w.relay.TrustRoots(w.private.File)
	w.relay.Follow(t, filepath.Join(w.relay.Folder, "error.log"))
	w.home = testnet.NewHome(t, w.Home, w.keys, testnet.HomeConfig{})
	return w
}

// start starts the relay with a Caddyfile, then home's WireGuard, and waits
// until they have found each other.
func (w *world) start(t testing.TB, caddyfile string) {
	t.Helper()
	w.relay.Start(t, caddyfile)
	w.home.Up(t)
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

// portsOn is ports with a tunnel on one of the stacks.
func (w *world) portsOn(t testing.TB, stack string) string {
	t.Helper()
	return replace(t, w.ports(t), "		mtu 1280\n", "		mtu 1280\n		stack "+stack+"\n")
}

// example is a relay that runs caddyfile-examples/relay.Caddyfile, as it is
// but for keys and paths, and with certificates from files, which is the
// example's own alternative to DNS-01.
func (w *world) example(t testing.TB) string {
	t.Helper()
	return w.exampleWith(t, w.public.Issue(t, testnet.Domain, testnet.Subdomain))
}

// exampleWith is example with certain certificate files.
func (w *world) exampleWith(t testing.TB, site testnet.Certificate) string {
	t.Helper()
	return substitute(t, "caddyfile-examples/relay.Caddyfile", w.paths(map[string]string{
		"	tls {\n		dns duckdns {env.DUCKDNS_TOKEN}\n	}\n":                                                        "",
		"	# tls {\n	# 	get_certificate file /etc/ssl/example.fullchain.pem /etc/ssl/private/example.key\n	# }\n": "	tls {\n		get_certificate file " + site.Cert + " " + site.Key + "\n	}\n",
	}))
}

// examplePublicKey stands in the examples for home's.
const examplePublicKey = "HOMES-PUBLIC-KEY-GOES-HERE"

// paths adds to values what has to be replaced in every example.
func (w *world) paths(values map[string]string) map[string]string {
	if values == nil {
		values = make(map[string]string)
	}
	values["/var/lib/caddy/homeward"] = w.relay.Folder + "/storage"
	values["/var/log/caddy"] = w.relay.Folder
	values["/etc/caddy/wg0.key"] = w.relay.Folder + "/wg0.key"
	values[examplePublicKey] = w.keys.Home.Public
	return values
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
