package wireguard

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging" // the file writer
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/modules/internal/wgquick"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// wgQuickFile writes this end's configuration to a file, with a command that
// would leave a trace.
func (o *other) wgQuickFile(t *testing.T, peerName string, preshared tunnel.PresharedKey) {
	t.Helper()
	content := fmt.Sprintf(`[Interface]
PrivateKey = %s
Address = 10.77.0.1/24
ListenPort = %d
PostUp = touch %s
DNS = 10.77.0.2

# Name = %s
[Peer]
PublicKey = %s
PresharedKey = %s
AllowedIPs = 10.77.0.2/32
`, o.relayKey.Base64(), o.listen, filepath.Join(o.dir, "trace"), peerName, o.publicKey, preshared.Base64())
	if err := os.WriteFile(filepath.Join(o.dir, "wg0.conf"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wgQuickConfig is a configuration whose tunnel comes from that file alone. It
// logs to the file log.
func (o *other) wgQuickConfig(apps string) []byte {
	return fmt.Appendf(nil, `{
		"admin": {"disabled": true, "config": {"persist": false}},
		"logging": {"logs": {"default": {"level": "DEBUG", "writer": {"output": "file", "filename": %q}}}},
		"storage": {"module": "file_system", "root": %q},
		"apps": {"wireguard": {"tunnels": {"wg0": {"wg_quick": "{env.HOMEWARD_TEST_DIR}/wg0.conf"}}}, %s}
	}`, filepath.Join(o.dir, "log"), o.dir, apps)
}

// A tunnel from a file works as one of the configuration's own. A reload reads
// the file again, and of its secrets nothing is seen anywhere.
func TestWgQuick(t *testing.T) {
	o := newOther(t)
	t.Setenv("HOMEWARD_TEST_DIR", o.dir)
	o.wgQuickFile(t, "home", tunnel.NewPresharedKey()) // not the other end's: nothing passes
	address := freeAdminAddress(t)
	load(t, withAdmin(t, o.wgQuickConfig(site("hello")), address))
	if text, _ := o.ask(t, "GET", address, "/wireguard/wg0", 200); !strings.Contains(text, `"home"`) {
		t.Errorf("the file's peer is not there: %s", text)
	}

	o.wgQuickFile(t, "hut", o.preshared)
	if err := caddy.Load(withAdmin(t, o.wgQuickConfig(site("hello again")), address), true); err != nil {
		t.Fatal(err)
	}
	var body string
	testnet.Eventually(t, patience, func() error {
		conn, err := o.dial(t, 80)
		if err != nil {
			return err
		}
		defer conn.Close()
		body, err = get(conn)
		return err
	})
	if body != "hello again" {
		t.Errorf("got %q", body)
	}
	if text, _ := o.ask(t, "GET", address, "/wireguard/wg0", 200); !strings.Contains(text, `"hut"`) || strings.Contains(text, `"home"`) {
		t.Errorf("the file's peer is not called by its new name: %s", text)
	}
	if text, _ := o.ask(t, "GET", address, "/config/", 200); !strings.Contains(text, `"{env.HOMEWARD_TEST_DIR}/wg0.conf"`) {
		t.Errorf("the configuration is %s", text)
	}

	// A file that is wrong changes nothing.
	wrong := []byte("[Interface]\nPrivateKey = " + o.relayKey.Base64()[1:] + "\n")
	if err := os.WriteFile(filepath.Join(o.dir, "wg0.conf"), wrong, 0o600); err != nil {
		t.Fatal(err)
	}
	err := caddy.Load(o.wgQuickConfig(site("hello")), true)
	if want := filepath.Join(o.dir, "wg0.conf") + ":2: PrivateKey: not a WireGuard key"; err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), o.relayKey.Base64()[1:20]) {
		t.Errorf("got %v, want an error with %s and no key", err, want)
	}
	o.exchange(t)

	log, err := os.ReadFile(filepath.Join(o.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	o.noSecrets(t, string(log))
	for _, part := range []string{"DNS in line 6: ", "PostUp in line 5: commands in the file are never run"} {
		if n := strings.Count(string(log), part); n != 2 {
			t.Errorf("%q is logged %d times in 2 loads:\n%s", part, n, log)
		}
	}
	if _, err := os.Stat(filepath.Join(o.dir, "trace")); !os.IsNotExist(err) {
		t.Errorf("a command of the file was run: %v", err)
	}
}

const (
	testPublicKey  = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
	testPublicKey2 = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
	testPublicKey3 = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
	testSecret     = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="
)

func parseWgQuick(t *testing.T, content string) *wgquick.File {
	t.Helper()
	file, err := wgquick.Parse("wg0.conf", []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// The file supplies what is missing and nothing else, and each of its keys
// either counts or is named.
func TestSupplied(t *testing.T) {
	const file = `[Interface]
PrivateKey = ` + testSecret + `
Address = 10.77.0.2/24, fd77::2
ListenPort = 51820
ListenPort = 51821
FwMark = 0xca6c
MTU = 1400
DNS = 10.77.0.1
DNS = example.org
Table = off
PreUp = a
PostUp = b
PreDown = c
PostDown = d
SaveConfig = false

# Name = relay
[Peer]
PublicKey = ` + testPublicKey + `
PresharedKey = ` + testSecret + `
AllowedIPs = 10.77.0.1/32, fd77::1/128
Endpoint = vm.example.org:51820
PersistentKeepalive = 25
`
	always := []string{"FwMark in line 6: ", "DNS in lines 8, 9: ", "Table in line 10: ", "PreUp in line 11: ", "PostUp in line 12: ", "PreDown in line 13: ", "PostDown in line 14: ", "SaveConfig in line 15: "}
	filePeer := Peer{
		PublicKey: testPublicKey, PresharedKey: testSecret, AllowedIPs: []string{"10.77.0.1/32", "fd77::1/128"},
		Endpoint: "vm.example.org:51820", PersistentKeepalive: 25e9,
	}
	fileTunnel := Tunnel{PrivateKey: testSecret, Address: []string{"10.77.0.2/24", "fd77::2/128"}, ListenPort: 51821, MTU: 1400, Peers: map[string]*Peer{"relay": &filePeer}}
	own := Tunnel{
		PrivateKey: "{file./wg0.key}", Address: []string{"10.77.0.3/24"}, ListenPort: 1, MTU: autoMTU, Stack: "gvisor",
		Peers: map[string]*Peer{"vm": {
			PublicKey: "{env.HOMEWARD_TEST_KEY}", PresharedKey: "{file./psk}", AllowedIPs: []string{"10.77.0.0/16"},
			Endpoint: "203.0.113.5:1", PersistentKeepalive: 10e9,
		}},
	}
	t.Setenv("HOMEWARD_TEST_KEY", testPublicKey)
	for _, test := range []struct {
		name    string
		block   Tunnel
		want    Tunnel
		ignored []string
	}{
		{"nothing given", Tunnel{}, fileTunnel, append(always, "ListenPort in line 4: line 5 gives another value")},
		{"everything given", own, own, append([]string{
			"PrivateKey in line 2: private_key in the wireguard block counts instead", "Address in line 3: address", "ListenPort in lines 4, 5: listen_port", "MTU in line 7: mtu",
			"PresharedKey in line 20: preshared_key", "AllowedIPs in line 21: allowed_ips", "Endpoint in line 22: endpoint", "PersistentKeepalive in line 23: persistent_keepalive",
			"ListenPort in line 4: line 5 gives another value",
		}, always...)},
		{"a peer by its name", Tunnel{Peers: map[string]*Peer{"relay": {Host: []string{"10.77.0.1"}}}}, func() Tunnel {
			want, peer := fileTunnel, filePeer
			peer.Host = []string{"10.77.0.1"}
			want.Peers = map[string]*Peer{"relay": &peer}
			return want
		}(), append(always, "ListenPort in line 4: line 5 gives another value")},
		{"another name for a peer, and another peer", Tunnel{Peers: map[string]*Peer{
			"vm":    {PublicKey: testPublicKey, Endpoint: "203.0.113.5:1"},
			"phone": {PublicKey: testPublicKey2, AllowedIPs: []string{"10.77.0.9/32"}},
		}}, func() Tunnel {
			want, peer := fileTunnel, filePeer
			peer.Endpoint = "203.0.113.5:1"
			want.Peers = map[string]*Peer{"vm": &peer, "phone": {PublicKey: testPublicKey2, AllowedIPs: []string{"10.77.0.9/32"}}}
			return want
		}(), append([]string{"Endpoint in line 22: endpoint", "ListenPort in line 4: line 5 gives another value"}, always...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := test.block.MarshalCaddyfile("wg0", nil)
			got, ignored, err := test.block.supplied(parseWgQuick(t, file), caddy.NewReplacer())
			if err != nil {
				t.Fatal(err)
			}
			got.Origins = nil
			if !reflect.DeepEqual(*got, test.want) {
				t.Errorf("got\n%swant\n%s", got.MarshalCaddyfile("wg0", nil), test.want.MarshalCaddyfile("wg0", nil))
			}
			if test.block.MarshalCaddyfile("wg0", nil) != before {
				t.Errorf("the configuration itself was changed to %+v", test.block)
			}
			var missing []string
			for _, want := range test.ignored {
				i := slices.IndexFunc(ignored, func(k ignoredKey) bool { return strings.HasPrefix(k.String(), want) })
				if i < 0 {
					missing = append(missing, want)
					continue
				}
				ignored = slices.Delete(ignored, i, i+1)
			}
			if len(missing)+len(ignored) > 0 {
				t.Errorf("of the ignored keys %q are not named, and %q should not be", missing, ignored)
			}
		})
	}
}

func TestSuppliedMTU(t *testing.T) {
	for _, mtu := range []string{"1279", "65001"} {
		got, ignored, err := new(Tunnel).supplied(parseWgQuick(t, "[Interface]\nMTU = "+mtu+"\n"), caddy.NewReplacer())
		if err != nil || got.MTU != 0 || len(ignored) != 1 || !strings.HasPrefix(ignored[0].String(), "MTU in line 2: a tunnel carries packets of 1280 to 65000") {
			t.Errorf("%s: the MTU is %d, %v is ignored, %v", mtu, got.MTU, ignored, err)
		}
	}
}

func TestSuppliedPeerNames(t *testing.T) {
	section := func(name, key string) string {
		if name != "" {
			name = "# Name = " + name + "\n"
		}
		return "\n" + name + "[Peer]\nPublicKey = " + key + "\n"
	}
	for _, test := range []struct {
		name  string
		names [3]string
		block map[string]*Peer
		want  map[string]string // public keys by name
	}{
		{"by number", [3]string{}, nil, map[string]string{"peer1": testPublicKey, "peer2": testPublicKey2, "peer3": testPublicKey3}},
		{"by comment", [3]string{"home", "", "hut"}, nil, map[string]string{"home": testPublicKey, "peer2": testPublicKey2, "hut": testPublicKey3}},
		{"names that cannot be", [3]string{"Ann's phone!", "12", "…"}, nil, map[string]string{"Ann-s-phone": testPublicKey, "peer2": testPublicKey2, "peer3": testPublicKey3}},
		{"long name", [3]string{strings.Repeat("a", 64), strings.Repeat("a", 63)}, nil, map[string]string{"peer1": testPublicKey, strings.Repeat("a", 63): testPublicKey2, "peer3": testPublicKey3}},
		{"the same name twice", [3]string{"a b", "a-b", "c"}, nil, map[string]string{"a-b": testPublicKey, "peer2": testPublicKey2, "c": testPublicKey3}},
		{"a name that is also a number", [3]string{"", "peer1", "peer3"}, nil, map[string]string{"peer1-unnamed": testPublicKey, "peer1": testPublicKey2, "peer3": testPublicKey3}},
		{"the block's name counts", [3]string{"a", "b", "c"}, map[string]*Peer{"x": {PublicKey: testPublicKey2}}, map[string]string{"a": testPublicKey, "x": testPublicKey2, "c": testPublicKey3}},
		{"the block renames a number", [3]string{}, map[string]*Peer{"peer1": {PublicKey: testPublicKey3}}, map[string]string{"peer1-unnamed": testPublicKey, "peer2": testPublicKey2, "peer1": testPublicKey3}},
		{"the block adds to a number", [3]string{}, map[string]*Peer{"peer2": nil}, map[string]string{"peer1": testPublicKey, "peer2": testPublicKey2, "peer3": testPublicKey3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := "[Interface]\nListenPort = 1\n" + section(test.names[0], testPublicKey) + section(test.names[1], testPublicKey2) + section(test.names[2], testPublicKey3)
			whole, _, err := (&Tunnel{Peers: test.block}).supplied(parseWgQuick(t, file), caddy.NewReplacer())
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]string)
			for name, peer := range whole.Peers {
				got[name] = peer.PublicKey
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// Who has nothing to be told of is told so more quietly.
func TestWgQuickLogLevel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wg0.conf")
	for content, want := range map[string]zapcore.Level{
		"[Interface]\nListenPort = 1\n":              zap.InfoLevel,
		"[Interface]\nListenPort = 1\nTable = off\n": zap.WarnLevel,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		core, logs := observer.New(zap.DebugLevel)
		if _, err := (&Tunnel{WgQuick: path}).withFile("wg0", caddy.NewReplacer(), zap.New(core)); err != nil {
			t.Fatal(err)
		}
		if all := logs.All(); len(all) != 1 || all[0].Level != want {
			t.Errorf("%q is told as %v, want %s", content, all, want)
		}
	}
}

func TestWgQuickTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wg0.conf")
	if err := os.WriteFile(path, []byte("[Interface]\n"+strings.Repeat("#\n", maxWgQuickFile/2)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readWgQuick(path); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("got %v", err)
	}
}
