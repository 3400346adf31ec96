package wireguard

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// TestValidateListeners checks configurations as `caddy validate` does, which starts none,
// and as often that the apps come in every order.
func TestValidateListeners(t *testing.T) {
	o := newOther(t)
	site := func(listen, more string) string {
		return fmt.Sprintf(`"http": {"servers": {"web": {"listen": [%q], "automatic_https": {"disable": true}%s}}}`, listen, more)
	}
	server := func(listen string) string {
		return fmt.Sprintf(`"layer4": {"servers": {"echo": {"listen": [%q], "routes": [{"handle": [{"handler": "echo"}]}]}}}`, listen)
	}
	const none = "there is no tunnel wg9; the configured ones are: wg0"
	const port = "a listener inside a tunnel needs a port from 1 to 65535"
	const taken = "this configuration already has a server there"
	for _, test := range []struct {
		name, apps, want string
	}{
		{"a site in no tunnel", site("wireguard/wg9:80", ""), "http server web: listening on wireguard/wg9:80: " + none},
		{"a server in no tunnel", server("wireguard+udp/wg9:53"), "layer4 server echo: listening on wireguard+udp/wg9:53: " + none},
		{"a site at port 0", site("wireguard/wg0:0", ""), "http server web: listening on wireguard/wg0:0: " + port},
		{"a server without a port", server("wireguard/wg0"), "layer4 server echo: listening on wireguard/wg0:0: " + port},
		{"two at one port", site("wireguard/wg0:80", "") + "," + server("wireguard/wg0:80"), "layer4 server echo: listening on wireguard/wg0:80: " + taken},
		{"one in another's range", site("wireguard/wg0:8000", "") + "," + server("wireguard/wg0:7999-8001"), "layer4 server echo: listening on wireguard/wg0:8000: " + taken},
		{"an address twice", server(`wireguard/wg0:7", "wireguard/wg0:7`), "wireguard/wg0:7: " + taken},

		{"TCP and UDP", site("wireguard/wg0:80", "") + "," + server("wireguard+udp/wg0:80"), ""},
		{"HTTP/3 and a server at its port", site("wireguard/wg0:443", "") + "," + server("wireguard+udp/wg0:443"), "layer4 server echo: listening on wireguard+udp/wg0:443: " + taken},
		{"HTTP/3 at another port", site("wireguard/wg0:8443", `, "tls_connection_policies": [{}]`) + "," + server("wireguard+udp/wg0:8443"), "layer4 server echo: listening on wireguard+udp/wg0:8443: " + taken},
		{"no HTTP/3", site("wireguard/wg0:443", `, "protocols": ["h1", "h2"]`) + "," + server("wireguard+udp/wg0:443"), ""},
		{"HTTP/3 alone is UDP", site("wireguard/wg0:80", `, "protocols": ["h3"]`) + "," + server("wireguard/wg0:80"), ""},
		{"HTTP/3 alone at an address", site("wireguard/wg0:80", `, "listen_protocols": [["h3"]]`) + "," + server("wireguard/wg0:80"), ""},
		{"outside of the tunnel", site(":80", "") + "," + server("wireguard/wg0:80"), ""},
		{"another tunnel's", site("wireguard/wg0:80", "") + "," + server("wireguard/wg1:80"), ""},
		{"an environment of the service's", server("wireguard/{env.HOMEWARD_TEST_NOT_SET}:80"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := strings.ReplaceAll(string(o.config(test.apps)), `\"`, `"`)
			if strings.Contains(text, "wireguard/wg1:") {
				text = strings.Replace(text, `{"tunnels": {`, `{"tunnels": {"wg1": {"private_key": "{file.`+o.dir+`/wg0.key}", "address": ["10.78.0.1/24"]},`, 1)
			}
			for range 20 {
				config := new(caddy.Config)
				if err := json.Unmarshal([]byte(text), config); err != nil {
					t.Fatal(err)
				}
				err := caddy.Validate(config)
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Fatalf("got %v, want %q", err, test.want)
				}
			}
		})
	}
}
