package wireguard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// show runs `caddy wireguard show` with arguments in this process.
func show(args ...string) (output string, err error) {
	cmd := showCommand()
	var out, complaints bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&complaints)
	cmd.SetArgs(args)
	err = cmd.Execute()
	return out.String(), err
}

func TestShow(t *testing.T) {
	o := newOther(t)
	address := freeAdminAddress(t)
	load(t, withAdmin(t, o.config(site("hello")), address))
	o.exchange(t)
	for _, args := range [][]string{nil, {"wg0"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			text, err := show(append(args, "--address", address)...)
			if err != nil {
				t.Fatal(err)
			}
			o.noSecrets(t, text)
			for _, want := range []string{
				"interface: wg0\n  public key: " + o.relayKey.Public().String() + "\n",
				"\n\npeer: home\n  public key: " + o.publicKey.String() + "\n",
			} {
				if !strings.Contains(text, want) {
					t.Errorf("got\n%s\nwithout\n%s", text, want)
				}
			}

			text, err = show(append(args, "--address", address, "--json")...)
			if err != nil {
				t.Fatal(err)
			}
			o.noSecrets(t, text)
			var tunnels []tunnelInfo
			if len(args) == 1 {
				tunnels = make([]tunnelInfo, 1)
				err = json.Unmarshal([]byte(text), &tunnels[0])
			} else {
				err = json.Unmarshal([]byte(text), &tunnels)
			}
			if err != nil || len(tunnels) != 1 || tunnels[0].Name != "wg0" || len(tunnels[0].Peers) != 1 {
				t.Errorf("%v: %s", err, text)
			}
		})
	}
}

// TestShowFindsTheAdminAddress takes it from a configuration file.
func TestShowFindsTheAdminAddress(t *testing.T) {
	o := newOther(t)
	address := freeAdminAddress(t)
	load(t, withAdmin(t, o.config(""), address))
	for name, content := range map[string]string{
		"caddy.json": fmt.Sprintf(`{"admin": {"listen": %q}}`, address),
		"Caddyfile":  fmt.Sprintf("{\n\tadmin %s\n}\n", address),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(o.dir, name)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if text, err := show("--config", path); err != nil || !strings.HasPrefix(text, "interface: wg0\n") {
				t.Errorf("got %q, %v", text, err)
			}
		})
	}
}

func TestShowErrors(t *testing.T) {
	o := newOther(t)
	address := freeAdminAddress(t)
	// Two sites that someone may take for the admin API.
	missing, empty := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp")
	sites := fmt.Sprintf(`"http": {"servers": {
		"missing": {"listen": ["127.0.0.1:%d"], "automatic_https": {"disable": true}, "routes": [{"handle": [{"handler": "static_response", "status_code": 404}]}]},
		"empty": {"listen": ["127.0.0.1:%d"], "automatic_https": {"disable": true}}
	}}`, missing, empty)
	load(t, withAdmin(t, o.config(sites), address))
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown tunnel", []string{"wg7", "--address", address}, `there is no tunnel "wg7"; the running configuration has wg0`},
		{"no Caddy", []string{"--address", freeAdminAddress(t)}, "no Caddy answers there; start it, or name its admin address with --address or --config"},
		{"no module", []string{"--address", fmt.Sprintf("127.0.0.1:%d", missing)}, "it has no wireguard module"},
		{"another program", []string{"--address", fmt.Sprintf("127.0.0.1:%d", empty)}, "seems not to be Caddy's admin address"},
		{"no configuration file", []string{"--config", "/no/such/Caddyfile"}, "/no/such/Caddyfile"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text, err := show(test.args...)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, %v, want an error with %q", text, err, test.want)
			}
		})
	}
}

func TestShowWithoutTunnels(t *testing.T) {
	address := freeAdminAddress(t)
	load(t, fmt.Appendf(nil, `{"admin": {"listen": %q, "config": {"persist": false}}, "logging": {"logs": {"default": {"level": "ERROR"}}}}`, address))
	if text, err := show("--address", address); err == nil || !strings.Contains(err.Error(), "has no wireguard block") {
		t.Errorf("got %q, %v", text, err)
	}
	if text, err := show("--address", address, "wg0"); err == nil || !strings.Contains(err.Error(), "nor any other") {
		t.Errorf("one of them: got %q, %v", text, err)
	}
	if text, err := show("--address", address, "--json"); err != nil || text != "[]\n" {
		t.Errorf("as JSON: got %q, %v", text, err)
	}
}

func TestShowText(t *testing.T) {
	now := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	tunnels := shownTunnels{{tunnelInfo: tunnelInfo{
		Name:              "wg0",
		Up:                true,
		UpSince:           now.Add(-26 * time.Hour),
		PublicKey:         "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
		Addresses:         []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd77::1/64")},
		ListenPort:        51820,
		MTU:               1412,
		Stack:             "kernel",
		StackReason:       "the configuration says so",
		CongestionControl: "bbr",
		Peers: []peerInfo{{
			Name:                "home",
			PublicKey:           "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=",
			Endpoint:            netip.MustParseAddrPort("[2001:db8::1]:40000"),
			AllowedIPs:          []netip.Prefix{netip.MustParsePrefix("10.77.0.2/32"), netip.MustParsePrefix("192.168.178.0/24")},
			LatestHandshake:     now.Add(-72 * time.Second),
			LastReceived:        now.Add(-time.Second),
			BytesReceived:       5 << 20,
			BytesSent:           1536,
			PersistentKeepalive: 25,
			PathMTU:             1412,
		}, {
			Name:       "office",
			PublicKey:  "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=",
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.77.0.3/32")},
		}},
	}}, {tunnelInfo: tunnelInfo{Name: "wg1"}}}
	const want = `interface: wg0
  public key: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
  addresses: 10.77.0.1/24, fd77::1/64
  listening port: 51820
  mtu: 1412
  stack: kernel (the configuration says so)
  congestion control: bbr
  up since: 1 day, 2 hours ago

peer: home
  public key: 3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=
  endpoint: [2001:db8::1]:40000
  allowed ips: 10.77.0.2/32, 192.168.178.0/24
  latest handshake: 1 minute, 12 seconds ago
  last received: 1 second ago
  transfer: 5.00 MiB received, 1.50 KiB sent
  persistent keepalive: every 25 seconds
  path mtu: 1412

peer: office
  public key: dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=
  endpoint: (not known yet)
  allowed ips: 10.77.0.3/32
  latest handshake: never
  last received: never
  transfer: 0 B received, 0 B sent

interface: wg1
  state: down
`
	if got := tunnels.text(now); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAgo(t *testing.T) {
	now := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		before time.Duration
		want   string
	}{
		{-5 * time.Second, "now"},
		{999 * time.Millisecond, "now"},
		{time.Second, "1 second ago"},
		{time.Minute, "1 minute ago"},
		{2*time.Hour + 59*time.Second, "2 hours, 59 seconds ago"},
		{366*24*time.Hour + time.Second, "1 year, 1 day, 1 second ago"},
	} {
		if got := ago(now.Add(-test.before), now); got != test.want {
			t.Errorf("%s: %q, want %q", test.before, got, test.want)
		}
	}
}

func TestSize(t *testing.T) {
	for _, test := range []struct {
		bytes uint64
		want  string
	}{
		{0, "0 B"},
		{1023, "1023 B"},
		{1024, "1.00 KiB"},
		{1536 << 10, "1.50 MiB"},
		{3 << 30, "3.00 GiB"},
		{5 << 40, "5.00 TiB"},
		{5 << 50, "5120.00 TiB"},
	} {
		if got := size(test.bytes); got != test.want {
			t.Errorf("%d: %q, want %q", test.bytes, got, test.want)
		}
	}
}
