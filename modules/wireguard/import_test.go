package wireguard

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/modules/internal/wgquick"
)

// adaptedTunnel adapts a wireguard block and returns the tunnel in it.
func adaptedTunnel(t *testing.T, block, name string) *Tunnel {
	t.Helper()
	adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte("{\n"+block+"}\n"), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("%v\n%s", err, block)
	}
	for _, warning := range warnings {
		if !strings.Contains(warning.Message, "not formatted") {
			t.Errorf("%v\n%s", warning, block)
		}
	}
	var config struct {
		Apps struct {
			Wireguard App `json:"wireguard"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(adapted, &config); err != nil {
		t.Fatal(err)
	}
	if config.Apps.Wireguard.Tunnels[name] == nil {
		t.Fatalf("there is no tunnel %s in\n%s", name, block)
	}
	return config.Apps.Wireguard.Tunnels[name]
}

// wantedConfig is what a block's tunnel is at work.
func wantedConfig(t *testing.T, block, name string) *tunnel.Config {
	t.Helper()
	parsed, err := adaptedTunnel(t, block, name).parse(name, caddy.NewReplacer())
	if err != nil {
		t.Fatalf("%v\n%s", err, block)
	}
	return parsed.config
}

// imports writes a file and returns what the command makes of it.
func imports(t *testing.T, file, name string, arguments ...string) (text, folder string) {
	t.Helper()
	folder = t.TempDir()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := importCommand()
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	for i := range arguments {
		arguments[i] = strings.ReplaceAll(arguments[i], "$DIR", folder)
	}
	cmd.SetArgs(append([]string{path}, arguments...))
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	return out.String(), folder
}

const importable = `[Interface]
PrivateKey = dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=
Address = 10.77.0.2/24
DNS = 10.77.0.1
MTU = 1200
PostUp = ip rule add secret
PostUp = true

# Name = relay
[Peer]
PublicKey = ` + testPublicKey2 + `
PresharedKey = ` + testSecret + `
AllowedIPs = 10.77.0.1/32
Endpoint = vm.example.org:51820
PersistentKeepalive = 25

[Peer]
PublicKey = ` + testPublicKey3 + `
AllowedIPs = 192.168.178.0/24
Endpoint = [2001:db8::1]:51821
`

func TestImport(t *testing.T) {
	const block = `wireguard wg7 {
	private_key {file.$DIR/wg7.key}
	address 10.77.0.2/24
	peer peer2 {
		public_key ` + testPublicKey3 + `
		allowed_ips 192.168.178.0/24
		endpoint [2001:db8::1]:51821
		# The name peer2 stands for no address yet. Name the server's, to use it in upstreams:
		# host <address>
	}
	peer relay {
		public_key ` + testPublicKey2 + `
		preshared_key {file.$DIR/wg7-relay.psk}
		allowed_ips 10.77.0.1/32
		endpoint vm.example.org:51820
		persistent_keepalive 25s
	}
	# Not imported:
	# - MTU in line 5: a tunnel carries packets of 1280 to 65000 bytes; it is measured what fits
	# - DNS in line 4: this machine keeps its own resolver; resolvers in the wireguard block names servers to ask through the tunnel for upstreams
	# - PostUp in lines 6, 7: commands in the file are never run; the tunnel needs no routes and no rules on this machine
}
`
	t.Run("with a folder", func(t *testing.T) {
		text, folder := imports(t, importable, "wg7.conf", "--key-folder", "$DIR")
		want := strings.ReplaceAll(`# From $DIR/wg7.conf, for the global options: the braces at the top of the Caddyfile.
# The keys are in files that only the user who made them can read. If Caddy runs as
# another one, such as caddy, give them to that one:
#   chown caddy $DIR/wg7.key $DIR/wg7-relay.psk
`+block, "$DIR", folder)
		if text != want {
			t.Errorf("got\n%s\nwant\n%s", text, want)
		}
		for name, want := range map[string]string{"wg7.key": "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n", "wg7-relay.psk": testSecret + "\n"} {
			content, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil || string(content) != want {
				t.Errorf("%s has %q, %v", name, content, err)
			}
			if info, err := os.Stat(filepath.Join(folder, name)); err == nil && runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %o", name, info.Mode().Perm())
			}
		}
		config := wantedConfig(t, text, "wg7")
		if config.PrivateKey.Base64() != "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=" || len(config.Peers) != 2 || config.Peers[1].PresharedKey.Base64() != testSecret {
			t.Errorf("it means %+v", config)
		}
	})
	t.Run("without a folder", func(t *testing.T) {
		text, folder := imports(t, importable, "my config.conf", "--name", "wg7")
		want := fmt.Sprintf(`# From %[1]s/my config.conf, for the global options: the braces at the top of the Caddyfile.
# The keys are not in their files yet. This writes them, as root, where Caddy runs as caddy:
#   caddy wireguard import '%[1]s/my config.conf' --name wg7 --key-folder /etc/caddy
#   chown caddy /etc/caddy/wg7.key /etc/caddy/wg7-relay.psk
`, folder) + strings.ReplaceAll(block, "$DIR", "/etc/caddy")
		if text != want {
			t.Errorf("got\n%s\nwant\n%s", text, want)
		}
		adaptedTunnel(t, text, "wg7")
		if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
			t.Errorf("there are %v, %v", entries, err)
		}
	})
}

func TestImportName(t *testing.T) {
	for file, want := range map[string]string{"wg3.conf": "wg3", "wg_config.conf": "wg0", "home-vm.txt": "home-vm"} {
		text, _ := imports(t, importable, file)
		adaptedTunnel(t, text, want)
	}
}

// A file whose key is elsewhere, as with `PostUp = wg set %i private-key …`.
func TestImportWithoutPrivateKey(t *testing.T) {
	text, folder := imports(t, strings.Replace(importable, "PrivateKey = ", "#", 1), "wg0.conf", "--key-folder", "$DIR")
	if want := "# PrivateKey is not in the file: put the key into " + folder + "/wg0.key"; !strings.Contains(text, want) {
		t.Errorf("%q is not in\n%s", want, text)
	}
	if _, err := os.Stat(filepath.Join(folder, "wg0.key")); !os.IsNotExist(err) {
		t.Errorf("a key was made up: %v", err)
	}
	if _, err := os.Stat(filepath.Join(folder, "wg0-relay.psk")); err != nil {
		t.Error(err)
	}
}

func TestImportRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(t *testing.T, folder string, file *string)
		want    string
		written []string
	}{
		{"a wrong file", func(_ *testing.T, _ string, file *string) { *file = "[Interface]\nPrivateKey = " + testSecret[1:] }, "wg0.conf:2: PrivateKey: not a WireGuard key", nil},
		{"no file", func(_ *testing.T, _ string, file *string) { *file = "" }, "wg0.conf: there is no [Interface] section", nil},
		{"no address", func(_ *testing.T, _ string, file *string) { *file = strings.Replace(*file, "Address", "#", 1) }, "wg0.conf: tunnel wg0: address: missing", nil},
		{"what cannot be", func(_ *testing.T, _ string, file *string) {
			*file = strings.Replace(*file, "192.168.178.0/24", "10.77.0.1/32", 1)
		}, "wg0.conf:13: tunnel wg0: peers peer2 and relay both have 10.77.0.1/32", nil},
		{"another key in the way", func(t *testing.T, folder string, _ *string) {
			if err := os.WriteFile(filepath.Join(folder, "keys", "wg0-relay.psk"), []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "keys/wg0-relay.psk is there already, with something else in it", []string{"wg0-relay.psk"}},
		{"the same key for all to read", func(t *testing.T, folder string, _ *string) {
			path := filepath.Join(folder, "keys", "wg0-relay.psk")
			if err := os.WriteFile(path, []byte(testSecret), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "everybody can read it there: chmod 600", []string{"wg0-relay.psk"}},
		{"no folder", func(t *testing.T, folder string, _ *string) {
			if err := os.Remove(filepath.Join(folder, "keys")); err != nil {
				t.Fatal(err)
			}
		}, "keys does not exist; make it first", nil},
		{"a link that leads elsewhere", func(t *testing.T, folder string, _ *string) {
			if err := os.Symlink("../elsewhere", filepath.Join(folder, "keys", "wg0-relay.psk")); err != nil {
				t.Fatal(err)
			}
		}, "is there already", []string{"wg0-relay.psk"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			if err := os.Mkdir(filepath.Join(folder, "keys"), 0o700); err != nil {
				t.Fatal(err)
			}
			file := importable
			test.change(t, folder, &file)
			path := filepath.Join(folder, "wg0.conf")
			if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			err := importFile(&out, path, "", filepath.Join(folder, "keys"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
			if strings.Contains(err.Error(), testSecret[1:20]) || out.Len() > 0 {
				t.Errorf("it says %q and prints %q", err, &out)
			}
			var written []string
			entries, _ := os.ReadDir(filepath.Join(folder, "keys"))
			for _, entry := range entries {
				written = append(written, entry.Name())
			}
			if !slices.Equal(written, test.written) {
				t.Errorf("in the folder are %q, want %q", written, test.written)
			}
		})
	}
}

// The same import again is no mistake.
func TestImportTwice(t *testing.T) {
	first, folder := imports(t, importable, "wg0.conf", "--key-folder", "$DIR")
	var second strings.Builder
	if err := importFile(&second, filepath.Join(folder, "wg0.conf"), "", folder); err != nil || second.String() != first {
		t.Errorf("%v, got\n%s\nwant\n%s", err, &second, first)
	}
}

// What a FRITZ!Box makes for its other end becomes a tunnel of that end's.
func TestImportFritzBox(t *testing.T) {
	for file, want := range map[string]string{
		"fritzbox_device.conf":  "allowed_ips 192.168.178.0/24 0.0.0.0/0",
		"fritzbox_network.conf": "listen_port 51820",
	} {
		content, err := os.ReadFile(filepath.Join("..", "internal", "wgquick", "testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := imports(t, string(content), "wg_config.conf", "--key-folder", "$DIR")
		if !strings.Contains(text, want) || !strings.Contains(text, "# - DNS in lines ") {
			t.Errorf("%q or DNS is not in\n%s", want, text)
		}
		config := wantedConfig(t, text, "wg0")
		if len(config.Peers) != 1 || config.Peers[0].PersistentKeepalive != 25*time.Second || config.Peers[0].PresharedKey == (tunnel.PresharedKey{}) ||
			config.Peers[0].Endpoint != "abcdefghijklmnop.myfritz.net:58354" {
			t.Errorf("it means %+v", config)
		}
	}
}

// randomRelay is a relay's tunnel with all that a wg-quick file can say, and
// its homes' private keys by name.
func randomRelay(r *rand.Rand) (*tunnel.Config, map[string]tunnel.PrivateKey) {
	maybe := func() bool { return r.IntN(2) == 0 }
	config := &tunnel.Config{PrivateKey: tunnel.NewPrivateKey(), Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24")}}
	both := maybe()
	if both {
		config.Addresses = append(config.Addresses, netip.MustParsePrefix("fd77::1/64"))
	}
	if maybe() {
		config.MTU = 1280 + r.IntN(200)
	}
	keys := make(map[string]tunnel.PrivateKey)
	for i := range r.IntN(5) {
		key := tunnel.NewPrivateKey()
		address := netip.AddrFrom4([4]byte{10, 77, 0, byte(2 + i)})
		peer := tunnel.Peer{
			Name:       fmt.Sprintf("%c-%d", 'z'-i, r.IntN(10)),
			PublicKey:  key.Public(),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(address, 32)},
		}
		if both && maybe() {
			peer.AllowedIPs = append(peer.AllowedIPs, netip.MustParsePrefix(fmt.Sprintf("fd77::%x/128", 2+i)))
		}
		if maybe() {
			peer.AllowedIPs = append(peer.AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 24))
		}
		for _, prefix := range peer.AllowedIPs {
			if prefix.IsSingleIP() {
				peer.Hosts = append(peer.Hosts, prefix.Addr())
			}
		}
		if maybe() {
			peer.PresharedKey = tunnel.NewPresharedKey()
		}
		if maybe() {
			peer.Endpoint = []string{"home.example.org:51820", "[2001:db8::1]:1", "203.0.113.5:65535"}[r.IntN(3)]
		}
		if maybe() {
			peer.PersistentKeepalive = time.Duration(1+r.IntN(65535)) * time.Second
		}
		if peer.Endpoint == "" || maybe() {
			config.ListenPort = uint16(1 + r.IntN(65535))
		}
		config.Peers = append([]tunnel.Peer{peer}, config.Peers...) // by name, as Caddyfiles have them
		keys[peer.Name] = key
	}
	return config, keys
}

// roundTrip writes a configuration as a wg-quick file, imports that, and
// returns what the Caddyfile block means.
func roundTrip(t *testing.T, file *wgquick.File) *tunnel.Config {
	t.Helper()
	content, err := file.Encode()
	if err != nil {
		t.Fatal(err)
	}
	text, _ := imports(t, string(content), "wg0.conf", "--key-folder", "$DIR")
	if strings.Contains(text, file.Interface.PrivateKey.Base64()) {
		t.Errorf("the private key is in\n%s", text)
	}
	imported := wantedConfig(t, text, "wg0")

	// The file itself, read at load, means the same.
	path := filepath.Join(t.TempDir(), "wg0.conf")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	repl := caddy.NewReplacer()
	whole, err := adaptedTunnel(t, "wireguard {\n\twg_quick "+path+"\n}\n", "wg0").withFile("wg0", repl, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := whole.parse("wg0", repl)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(parsed.config, imported) {
		t.Errorf("read at load it is\n%+v\nand imported\n%+v", parsed.config, imported)
	}
	return imported
}

// From a Caddyfile to a wg-quick file and back everything keeps its meaning, for
// a relay and for what is made of it for each of its homes.
func TestRoundTrip(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 25 {
		relay, keys := randomRelay(r)
		if got := roundTrip(t, wgquick.FromConfig(relay)); !reflect.DeepEqual(got, relay) {
			t.Fatalf("got\n%+v\nwant\n%+v", got, relay)
		}
		for name, key := range keys {
			home := wgquick.Home{PrivateKey: key, Transparent: r.IntN(2) == 0}
			if r.IntN(4) > 0 {
				home.Endpoint = "vm.example.org:51820"
			}
			want, err := wgquick.HomeConfig(relay, name, home)
			if err != nil {
				t.Fatal(err)
			}
			if home.Endpoint == "" && want.ListenPort == 0 {
				want.ListenPort = defaultListenPort // ours; wg-quick takes any
			}
			file, err := wgquick.HomeFile(relay, name, home)
			if err != nil {
				t.Fatal(err)
			}
			if home.Transparent {
				want.Peers[0].Hosts = nil // allowed IPs of everybody are nobody's in particular
			}
			if got := roundTrip(t, file); !reflect.DeepEqual(got, want) {
				t.Fatalf("got\n%+v\nwant\n%+v", got, want)
			}
		}
	}
}

// MarshalCaddyfile writes what UnmarshalCaddyfile reads.
func TestMarshalCaddyfile(t *testing.T) {
	want := &Tunnel{
		PrivateKey: "{file./etc/my keys/`wg0`.key}", Address: []string{"10.77.0.1/24", "fd77::1/64"}, ListenPort: 51820, MTU: 1400,
		Resolvers: []string{"10.77.0.2", "[fd77::2]:5353"}, Stack: "kernel", CongestionControl: "bbr", WgQuick: `/etc/"wireguard"/#1 {env.X}.conf`,
		Peers: map[string]*Peer{
			"home": {
				PublicKey: testPublicKey, PresharedKey: "{env.PSK}", AllowedIPs: []string{"10.77.0.2/32", "192.168.178.0/24"},
				Host: []string{"10.77.0.2", "192.168.178.20"}, Endpoint: "[2001:db8::1]:51820", PersistentKeepalive: 25e9,
			},
			"hut": {PublicKey: testPublicKey2, AllowedIPs: []string{"fd77::3/128"}},
		},
	}
	for _, mtu := range []int{0, autoMTU, 1400} {
		want.MTU = mtu
		text := want.MarshalCaddyfile("wg0", map[string][]string{"": {"the end"}, "home": {"of it", "}"}})
		app := new(App)
		if err := app.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		got := app.Tunnels["wg0"]
		got.Origins = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got\n%+v\nwant\n%+v\nfrom\n%s", got, want, text)
		}
		if formatted := string(caddyfile.Format([]byte(text))); formatted != text {
			t.Errorf("caddy fmt makes\n%s\nof\n%s", formatted, text)
		}
	}
}
