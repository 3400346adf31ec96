package wireguard

import (
	"encoding/json"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddytls"
)

func TestMoveChallenges(t *testing.T) {
	const elsewhere = `"bind_host":"127.0.0.1"`
	for _, tt := range []struct{ name, challenges, want string }{
		{"none", `{}`, ""},
		{"no host", `{"http":{"disabled":true}}`, ""},
		{"an address", `{"bind_host":"192.0.2.1"}`, ""},
		{"an IPv6 address", `{"bind_host":"::1"}`, ""},
		{"in brackets", `{"bind_host":"[::]"}`, `{"bind_host":"::"}`},
		{"somebody else's network", `{"bind_host":"tailscale/home"}`, ""},
		{"a name that begins so", `{"bind_host":"wireguard.example"}`, ""},
		{"a tunnel", `{"bind_host":"wireguard/wg0"}`,
			`{"http":{"alternate_port":49080},"tls-alpn":{"alternate_port":49443},` + elsewhere + `}`},
		{"a tunnel, UDP", `{"bind_host":"wireguard+udp/wg0"}`,
			`{"http":{"alternate_port":49080},"tls-alpn":{"alternate_port":49443},` + elsewhere + `}`},
		{"ports of the user's", `{"http":{"alternate_port":8080},"tls-alpn":{"disabled":true,"alternate_port":8443},"bind_host":"wireguard/wg0"}`,
			`{"http":{"alternate_port":8080},"tls-alpn":{"disabled":true,"alternate_port":8443},` + elsewhere + `}`},
		{"DNS-01", `{"dns":{},"bind_host":"wireguard/wg0"}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			challenges := new(caddytls.ChallengesConfig)
			if err := json.Unmarshal([]byte(tt.challenges), challenges); err != nil {
				t.Fatal(err)
			}
			before, _ := json.Marshal(challenges)
			moved := moveChallenges(challenges)
			want := tt.want
			if want == "" {
				want = string(before)
			}
			got, _ := json.Marshal(challenges)
			if string(got) != want || moved != (tt.want != "") {
				t.Errorf("got %s, moved %v, want %s", got, moved, want)
			}
		})
	}
	if moveChallenges(nil) {
		t.Error("nothing is moved")
	}
}
