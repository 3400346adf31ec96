package l4wireguard

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/homeward-relay/homeward/tests/adapttest"
)

// relayKey is the relay's private key in fixtures: Alice's of RFC 7748,
// section 6.1. It is no secret.
const relayKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="

func TestCaddyfile(t *testing.T) {
	adapttest.Run(t, "testdata", func(t *testing.T, dir string) {
		if err := os.WriteFile(filepath.Join(dir, "wg0.key"), []byte(relayKey+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
}

// TestValidate checks configurations so often that the apps, which need each other, are
// provisioned in every order.
func TestValidate(t *testing.T) {
	t.Setenv("HOMEWARD_TEST_KEY", relayKey)
	const tunnel = `
	wireguard wg0 {
		private_key {env.HOMEWARD_TEST_KEY}
		address 10.77.0.1/24
		peer home {
			public_key 3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=
			allowed_ips 10.77.0.2/32
		}
	}
`
	for _, test := range []struct{ name, caddyfile, want string }{
		{"a listener wrapper has no range of layer4's", "{" + tunnel + `
	layer4 {
		:7000-7010 {
			route {
				wireguard home:7000-7010
			}
		}
	}
	servers {
		listener_wrappers {
			layer4 {
				route {
					wireguard home:7000-7010
				}
			}
			tls
		}
	}
}
example.org {
	tls internal
}
`, "Caddyfile:22: upstream home:7000-7010 has 11 ports"},
		{"two servers at one port of the tunnel", "{" + tunnel + `
	layer4 {
		wireguard/wg0:443 {
			route {
				wireguard home:22
			}
		}
	}
}
https://example.org {
	bind wireguard/wg0
	tls internal
}
`, "listening on wireguard/wg0:443: this configuration already has a server there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(test.caddyfile), map[string]any{"filename": "Caddyfile"})
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				config := new(caddy.Config)
				if err := json.Unmarshal(adapted, config); err != nil {
					t.Fatal(err)
				}
				if err := caddy.Validate(config); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got %v, want %q", err, test.want)
				}
			}
		})
	}
}

// Whatever the Caddyfile can say the JSON can, under the same name, and origins
// besides, which the adapter fills in.
func TestOptionsAreFields(t *testing.T) {
	fields := make(map[string]bool)
	for field := range reflect.TypeFor[Handler]().Fields() {
		if tag := field.Tag.Get("json"); tag != "" {
			fields[tag] = true
		}
	}
	for _, option := range []string{"upstreams", "tunnel", "direct", "transparent", "proxy_protocol", "dial_timeout", "idle_timeout", "origins"} {
		if !fields[option+",omitempty"] {
			t.Errorf("no field for %s", option)
		}
		delete(fields, option+",omitempty")
	}
	if len(fields) > 0 {
		t.Errorf("fields without an option: %v", fields)
	}
}

func FuzzUnmarshalCaddyfile(f *testing.F) {
	for _, input := range []string{
		"wireguard home:22",
		"wireguard home:22 {\n\tupstream udp/home:53 [fd77::1]:53\n\ttunnel wg0\n\tproxy_protocol v2\n\tdial_timeout 5s\n\tidle_timeout 1d\n\tlb_policy first\n}",
		"wireguard {\n\tupstream {l4.tls.server_name}:443\n\tproxy_protocol {env.X}\n}",
		"wireguard home:7000-7010 home:1-0 home:0 :1 [::]:1",
		"wireguard home:22 {\n\ttransparent\n}",
		"wireguard home:22 {\n\ttransparent on\n}",
		"wireguard 127.0.0.1:22 {\n\tdirect\n\ttunnel wg0\n}",
		"wireguard {\n\tupstream {\n\t\tx\n\t}\n}",
		"wireguard \"\" {",
	} {
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input string) {
		tokens, err := caddyfile.Tokenize([]byte(input), "Caddyfile")
		if err != nil {
			return
		}
		h := new(Handler)
		if err := h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
			return
		}
		if err := h.Validate(); err != nil {
			t.Errorf("%q was accepted and then refused: %v", input, err)
		}
		encoded, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		again := new(Handler)
		if err := json.Unmarshal(encoded, again); err != nil {
			t.Fatal(err)
		}
		if twice, _ := json.Marshal(again); string(twice) != string(encoded) {
			t.Errorf("%q became %s, then %s", input, encoded, twice)
		}
		for _, configured := range h.Upstreams {
			u, err := parseUpstream(configured)
			if err != nil || !u.dynamic && (u.host == "" || u.first == 0 || u.last < u.first) {
				t.Errorf("%q was accepted as %+v, %v", configured, u, err)
			}
		}
	})
}
