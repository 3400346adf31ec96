package wgquick

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

const fritzBox = `[Interface]
PrivateKey = ` + privateKey + `
Address = 192.168.178.1/24

[Peer]
PublicKey = ` + otherKey + `
PresharedKey = ` + presharedKey + `
AllowedIPs = 10.77.0.1/32
Endpoint = vm.example.org:51820
PersistentKeepalive = 25
`

func TestCheckFritzBox(t *testing.T) {
	for _, test := range []struct {
		name, old, new string // what is replaced in fritzBox, and by what
		want           string // empty: nothing
	}{
		{"as it should be", "", "", ""},
		{"another LAN", "192.168.178.1/24", "10.0.3.2/16", ""},
		{"DNS", "[Peer]", "DNS = 192.168.178.1\n[Peer]", "wg0.conf:5: a FRITZ!Box imports no DNS"},
		{"MTU", "[Peer]", "MTU = 1420\n[Peer]", "wg0.conf:5: a FRITZ!Box imports no MTU"},
		{"table", "[Peer]", "Table = off\n[Peer]", "wg0.conf:5: a FRITZ!Box imports no Table"},
		{"command", "[Peer]", "PostUp = true\n[Peer]", "wg0.conf:5: a FRITZ!Box imports no PostUp"},
		{"port", "[Peer]", "ListenPort = 51820\n[Peer]", "wg0.conf:5: a FRITZ!Box imports no ListenPort"},
		{"no private key", "PrivateKey = " + privateKey, "", "wg0.conf: there is no PrivateKey"},
		{"no address", "Address = 192.168.178.1/24", "", "wg0.conf: there are 0 addresses"},
		{"two addresses", "192.168.178.1/24", "192.168.178.1/24, 10.77.0.2/24", "wg0.conf:3: there are 2 addresses"},
		{"IPv6 address", "192.168.178.1/24", "fd77::2/64", "wg0.conf:3: Address fd77::2/64 is IPv6"},
		{"address of the network", "192.168.178.1/24", "192.168.178.0/24", "wg0.conf:3: Address 192.168.178.0/24 is the network"},
		{"broadcast address", "192.168.178.1/24", "192.168.178.255/24", "wg0.conf:3: Address 192.168.178.255/24 is the network's broadcast"},
		{"address alone", "192.168.178.1/24", "192.168.178.1", "wg0.conf:3: Address 192.168.178.1/32 has no LAN's length"},
		{"public address", "192.168.178.1/24", "203.0.113.1/24", "wg0.conf:3: Address 203.0.113.1/24 is no private address"},
		{"no peer", fritzBox[strings.Index(fritzBox, "[Peer]"):], "", "wg0.conf: there are 0 [Peer] sections"},
		{"two peers", "[Peer]", "[Peer]\nPublicKey = " + publicKey + "\n[Peer]", "wg0.conf: there are 2 [Peer] sections"},
		{"name", "[Peer]", "# Name = vm\n[Peer]", "wg0.conf:6: the [Peer] section has a comment"},
		{"comment", "[Interface]", "# mine\n[Interface]", "wg0.conf: the [Interface] section has a comment"},
		{"no preshared key", "PresharedKey = " + presharedKey, "", "wg0.conf:5: there is no PresharedKey"},
		{"allowed IPs of all", "10.77.0.1/32", "0.0.0.0/0", "wg0.conf:8: AllowedIPs must be the relay's tunnel address alone"},
		{"allowed IPs of both families", "10.77.0.1/32", "10.77.0.1/32, fd77::1/128", "wg0.conf:8: AllowedIPs must be the relay's tunnel address alone"},
		{"no allowed IPs", "AllowedIPs = 10.77.0.1/32", "", "wg0.conf: AllowedIPs must be"},
		{"relay in the LAN", "10.77.0.1/32", "192.168.178.77/32", "wg0.conf:8: AllowedIPs 192.168.178.77/32 is in the FRITZ!Box's own LAN 192.168.178.0/24"},
		{"endpoint by address", "vm.example.org", "203.0.113.5", "wg0.conf:9: Endpoint is an IP address"},
		{"endpoint by IPv6 address", "vm.example.org", "[2001:db8::1]", "wg0.conf:9: Endpoint is an IP address"},
		{"no endpoint", "Endpoint = vm.example.org:51820", "", "wg0.conf: there is no Endpoint"},
		{"another keepalive", "= 25", "= 60", "wg0.conf:10: PersistentKeepalive must be 25"},
		{"no keepalive", "PersistentKeepalive = 25", "", "wg0.conf: PersistentKeepalive must be 25"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := parse(t, strings.Replace(fritzBox, test.old, test.new, 1)).CheckFritzBox()
			switch {
			case err == nil && test.want != "":
				t.Errorf("it is accepted; want an error with %q", test.want)
			case err != nil && test.want == "":
				t.Error(err)
			case err != nil && !slices.ContainsFunc(strings.Split(err.Error(), "\n"), func(line string) bool { return strings.HasPrefix(line, test.want) }):
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
			if err != nil {
				noKeys(t, err.Error(), fritzBox)
			}
		})
	}
}

// What FRITZ!Boxes give out, as people have shown it, with other keys in it.
func TestParseFritzBoxExports(t *testing.T) {
	for name, want := range map[string]struct {
		addresses, allowed []netip.Prefix
		port               uint16
	}{
		"testdata/fritzbox_device.conf":  {addresses: prefixes("192.168.178.201/24"), allowed: prefixes("192.168.178.0/24", "0.0.0.0/0")},
		"testdata/fritzbox_network.conf": {addresses: prefixes("10.77.0.1/24"), allowed: prefixes("192.168.178.0/24"), port: 51820},
	} {
		t.Run(name, func(t *testing.T) {
			content, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			f := parse(t, string(content))
			if len(f.Peers) != 1 {
				t.Fatalf("it has %d peers, want 1", len(f.Peers))
			}
			peer := f.Peers[0]
			if !slices.Equal(f.Interface.Addresses, want.addresses) || !slices.Equal(peer.AllowedIPs, want.allowed) || f.Interface.ListenPort != want.port {
				t.Errorf("it has %v, %v and port %d, want %+v", f.Interface.Addresses, peer.AllowedIPs, f.Interface.ListenPort, want)
			}
			if peer.PresharedKey == (tunnel.PresharedKey{}) || peer.Endpoint != "abcdefghijklmnop.myfritz.net:58354" || peer.PersistentKeepalive != keepalive {
				t.Errorf("it has no preshared key, or endpoint %q or keepalive %s", peer.Endpoint, peer.PersistentKeepalive)
			}
			if !slices.Contains(f.Interface.DNS, "fritz.box") {
				t.Errorf("its DNS is %v, without fritz.box", f.Interface.DNS)
			}
		})
	}
}

// relayConfig is a relay with the peer home, whose private key it returns too.
func relayConfig() (*tunnel.Config, tunnel.PrivateKey) {
	home := tunnel.NewPrivateKey()
	return &tunnel.Config{
		PrivateKey: tunnel.NewPrivateKey(),
		Addresses:  prefixes("10.77.0.1/24", "fd77::1/64"),
		ListenPort: 51820,
		Peers: []tunnel.Peer{{
			Name: "other", PublicKey: tunnel.NewPrivateKey().Public(), AllowedIPs: prefixes("10.77.0.3/32"),
		}, {
			Name:         "home",
			PublicKey:    home.Public(),
			PresharedKey: tunnel.NewPresharedKey(),
			AllowedIPs:   prefixes("10.77.0.2/32", "192.168.178.0/24", "192.168.178.20/32", "fd77::2/128"),
		}},
	}, home
}

func TestFritzBoxFile(t *testing.T) {
	relay, key := relayConfig()
	home := Home{PrivateKey: key, Endpoint: "vm.example.org:51820"}
	f, err := FritzBoxFile(relay, "home", home, netip.MustParsePrefix("192.168.178.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	content, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`[Interface]
PrivateKey = %s
Address = 192.168.178.1/24

[Peer]
PublicKey = %s
PresharedKey = %s
AllowedIPs = 10.77.0.1/32
Endpoint = vm.example.org:51820
PersistentKeepalive = 25
`, key.Base64(), relay.PrivateKey.Public(), relay.Peers[1].PresharedKey.Base64())
	if string(content) != want {
		t.Errorf("got\n%s\nwant\n%s", content, want)
	}
	if err := parse(t, string(content)).CheckFritzBox(); err != nil {
		t.Error(err)
	}

	for _, test := range []struct {
		name   string
		change func(relay *tunnel.Config, home *Home, box *netip.Prefix)
		want   string
	}{
		{"another home's key", func(_ *tunnel.Config, home *Home, _ *netip.Prefix) { home.PrivateKey = tunnel.NewPrivateKey() }, "peer home has another public key"},
		{"transparent", func(_ *tunnel.Config, home *Home, _ *netip.Prefix) { home.Transparent = true }, "transparent cannot be had"},
		{"a LAN that the relay does not know", func(_ *tunnel.Config, _ *Home, box *netip.Prefix) { *box = netip.MustParsePrefix("192.168.2.1/24") }, "add 192.168.2.0/24 there"},
		{"a relay without IPv4", func(relay *tunnel.Config, _ *Home, _ *netip.Prefix) { relay.Addresses = relay.Addresses[1:] }, "give the relay's tunnel an IPv4 address"},
		{"a relay by its address", func(_ *tunnel.Config, home *Home, _ *netip.Prefix) { home.Endpoint = "203.0.113.5:51820" }, "Endpoint is an IP address"},
		{"no preshared key", func(relay *tunnel.Config, _ *Home, _ *netip.Prefix) {
			relay.Peers[1].PresharedKey = tunnel.PresharedKey{}
		}, "there is no PresharedKey"},
	} {
		t.Run(test.name, func(t *testing.T) {
			relay, key := relayConfig()
			home, box := Home{PrivateKey: key, Endpoint: "vm.example.org:51820"}, netip.MustParsePrefix("192.168.178.1/24")
			test.change(relay, &home, &box)
			if _, err := FritzBoxFile(relay, "home", home, box); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
