package wireguard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/tests/adapttest"
)

func TestCaddyfile(t *testing.T) {
	adapttest.Run(t, "testdata", func(t *testing.T, dir string) {
		for name, content := range map[string]string{
			"wg0.key":     tunnel.NewPrivateKey().Base64() + "\n",
			"rfc7748.key": "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n",
			"empty.key":   "",
			"wrong.key":   "not a key\n",
			"wg0.conf": "[Interface]\nPrivateKey = " + tunnel.NewPrivateKey().Base64() + "\nAddress = 10.77.0.1/24\nListenPort = 51820\n\n" +
				"# Name = home\n[Peer]\nPublicKey = hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\nAllowedIPs = 10.77.0.2/32\n",
			"keyonly.conf": "[Interface]\nPrivateKey = " + tunnel.NewPrivateKey().Base64() + "\n\n[Peer]\nPublicKey = hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n",
			"wrong.conf":   "[Interface]\nListenPort = 51820\nAddress = here\n",
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzUnmarshalCaddyfile(f *testing.F) {
	fixtures, err := filepath.Glob("testdata/*.caddyfiletest")
	if err != nil || len(fixtures) == 0 {
		f.Fatal("no fixtures to begin with: ", err)
	}
	for _, fixture := range fixtures {
		content, err := os.ReadFile(fixture)
		if err != nil {
			f.Fatal(err)
		}
		input, _, _ := strings.Cut(string(content), "\n"+adapttest.Separator+"\n")
		f.Add(strings.TrimSuffix(strings.TrimPrefix(input, "{\n"), "\n}"))
	}
	f.Fuzz(func(t *testing.T, input string) {
		app := new(App)
		d := caddyfile.NewTestDispenser(input)
		if err := app.UnmarshalCaddyfile(d); err != nil {
			return
		}
		for name, tunnel := range app.Tunnels {
			if _, err := tunnel.parse(name, nil); err != nil {
				t.Errorf("%q was accepted and then refused: %v", input, err)
			}
		}
	})
}
