package tests

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestShow asks a running relay for its tunnels, as the user that it runs as,
// and compares with what home's own WireGuard says.
func TestShow(t *testing.T) {
	keys := testnet.NewTunnelKeys(t)
	keys.Preshared = testnet.NewPresharedKey(t)
	w := newWorldWith(t, keys)
	services.Echo(t, w.Home, ":7000", "")
	caddyfile := replace(t, w.ports(t), "			public_key ", "			preshared_key {file."+w.relay.Folder+"/home.psk}\n			public_key ")

	if out, err := w.relay.Run("wireguard", "show"); err == nil || !strings.Contains(out, "no Caddy answers there") {
		t.Errorf("without a running relay: %v\n%s", err, out)
	}
	w.start(t, caddyfile)
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := echoOnce(conn, strings.Repeat("x", 8<<10)); err != nil {
		t.Fatal(err)
	}

	// noSecret returns an output, which must be free of keys.
	noSecret := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, secret := range []string{keys.Relay.Private, keys.Preshared} {
			if strings.Contains(out, secret) || strings.Contains(out, testnet.Hex(t, secret)) {
				t.Errorf("a secret is in\n%s", out)
			}
		}
		return out
	}
	var text string
	lines := `interface: wg0
  public key: ` + regexp.QuoteMeta(keys.Relay.Public) + `
  addresses: 10\.77\.0\.1/24
  listening port: 51820
  mtu: \d+
  stack: (kernel|gvisor) \(.+\)
(?:  congestion control: \w+
)?  up since: .*(second|now).*

peer: home
  public key: ` + regexp.QuoteMeta(keys.Home.Public) + `
  endpoint: ` + regexp.QuoteMeta(testnet.RouterIP) + `:\d+
  allowed ips: 10\.77\.0\.2/32
  latest handshake: (.* second.* ago|now)
  last received: (.* second.* ago|now)
  transfer: \d+\.\d\d KiB received, \d+\.\d\d KiB sent
(?:  path mtu: \d+
)?$`
	// The keeper looks every second, so what was just carried may not show yet.
	pattern := regexp.MustCompile("^" + lines)
	testnet.Eventually(t, 30*time.Second, func() error {
		text = noSecret(w.relay.Run("wireguard", "show"))
		if !pattern.MatchString(text) {
			return fmt.Errorf("it shows\n%s\nwant\n%s", text, lines)
		}
		return nil
	})
	t.Logf("caddy wireguard show:\n%s", text)
	// The log is for people or for programs, depending on where it goes.
	logged := regexp.MustCompile(`"stack": ?"(\w+)"`).FindStringSubmatch(w.relay.Log.String())
	if shown := pattern.FindStringSubmatch(text)[1]; logged == nil || logged[1] != shown {
		t.Errorf("it shows stack %s, while the log says %v", shown, logged)
	}

	var tunnels []struct {
		Name  string `json:"name"`
		Peers []struct {
			Name      string `json:"name"`
			PublicKey string `json:"public_key"`
		} `json:"peers"`
	}
	for _, answer := range []string{noSecret(w.relay.Run("wireguard", "show", "--json")), w.relay.Admin(t, "/wireguard/")} {
		if err := json.Unmarshal([]byte(noSecret(answer, nil)), &tunnels); err != nil {
			t.Fatalf("%v\n%s", err, answer)
		}
		if len(tunnels) != 1 || tunnels[0].Name != "wg0" || len(tunnels[0].Peers) != 1 || tunnels[0].Peers[0].PublicKey != keys.Home.Public {
			t.Errorf("got %s", answer)
		}
	}
	if out, err := w.relay.Run("wireguard", "show", "wg7"); err == nil || !strings.Contains(out, `there is no tunnel "wg7"; the running configuration has wg0`) {
		t.Errorf("a tunnel that is not there: %v\n%s", err, out)
	}
}
