package wgquick

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

func TestHomeFile(t *testing.T) {
	relay, key := relayConfig()
	public, psk := relay.PrivateKey.Public(), relay.Peers[1].PresharedKey.Base64()
	for _, test := range []struct {
		name string
		home Home
		want string
	}{
		{"plain", Home{Endpoint: "vm.example.org:51820"}, `[Interface]
PrivateKey = %s
Address = 10.77.0.2/24, fd77::2/64

# Name = relay
[Peer]
PublicKey = %s
PresharedKey = %s
AllowedIPs = 10.77.0.1/32, fd77::1/128
Endpoint = vm.example.org:51820
PersistentKeepalive = 25
`},
		{"transparent", Home{Endpoint: "vm.example.org:51820", Transparent: true}, `[Interface]
PrivateKey = %s
Address = 10.77.0.2/24, fd77::2/64
Table = 51820
PostUp = ip -4 rule add from 10.77.0.2 table 51820
PostUp = ip -6 rule add from fd77::2 table 51820
PostDown = ip -4 rule del from 10.77.0.2 table 51820
PostDown = ip -6 rule del from fd77::2 table 51820

# Name = relay
[Peer]
PublicKey = %s
PresharedKey = %s
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = vm.example.org:51820
PersistentKeepalive = 25
`},
		{"called by the relay", Home{}, `[Interface]
PrivateKey = %s
Address = 10.77.0.2/24, fd77::2/64
ListenPort = 51821
MTU = 1400

# Name = relay
[Peer]
PublicKey = %s
PresharedKey = %s
AllowedIPs = 10.77.0.1/32, fd77::1/128
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			relay := *relay
			if relay.Peers = slices.Clone(relay.Peers); test.home.Endpoint == "" {
				relay.Peers[1].Endpoint, relay.MTU = "home.example.org:51821", 1400
			}
			test.home.PrivateKey = key
			f, err := HomeFile(&relay, "home", test.home)
			if err != nil {
				t.Fatal(err)
			}
			content, err := f.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf(test.want, key.Base64(), public, psk); string(content) != want {
				t.Errorf("got\n%s\nwant\n%s", content, want)
			}
			if got := unplaced(parse(t, string(content))); !reflect.DeepEqual(got, f) {
				t.Errorf("got\n%+v\nwant\n%+v", got, f)
			}
		})
	}
}

// The other side of the other side is this one.
func TestHomeConfigTwice(t *testing.T) {
	relay, key := relayConfig()
	relay.Peers = relay.Peers[1:]
	relay.Peers[0].AllowedIPs = prefixes("10.77.0.2/32", "fd77::2/128")
	home, err := HomeConfig(relay, "home", Home{PrivateKey: key, Endpoint: "vm.example.org:51820"})
	if err != nil {
		t.Fatal(err)
	}
	back, err := HomeConfig(home, "relay", Home{PrivateKey: relay.PrivateKey})
	if err != nil {
		t.Fatal(err)
	}
	back.Peers[0].Name = "home" // the other side of everything is a relay
	back.Peers[0].Hosts = nil
	if !reflect.DeepEqual(back, relay) {
		t.Errorf("got\n%+v\nwant\n%+v", back, relay)
	}
}

func TestHomeConfigErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		peer   string
		change func(relay *tunnel.Config, home *Home)
		want   string
	}{
		{"no such peer", "away", func(*tunnel.Config, *Home) {}, "the tunnel has no peer away"},
		{"another's key", "other", func(*tunnel.Config, *Home) {}, "peer other has another public key"},
		{"no address", "home", func(relay *tunnel.Config, _ *Home) { relay.Peers[1].AllowedIPs = prefixes("192.168.178.20/32") }, "peer home has no address in the tunnel's network"},
		{"the relay's address", "home", func(relay *tunnel.Config, _ *Home) { relay.Peers[1].AllowedIPs = prefixes("10.77.0.1/32") }, "peer home has no address in the tunnel's network"},
		{"no port", "home", func(relay *tunnel.Config, _ *Home) { relay.Peers[1].Endpoint = "home" }, "peer home: endpoint: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			relay, key := relayConfig()
			home := Home{PrivateKey: key}
			test.change(relay, &home)
			if _, err := HomeConfig(relay, test.peer, home); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
