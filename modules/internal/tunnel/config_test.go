package tunnel

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// key is a public key that tests can tell apart.
func key(n byte) (k PublicKey) {
	k[0], k[31] = n, 1
	return k
}

func peer(n byte, name string, allowed ...string) Peer {
	return Peer{Name: name, PublicKey: key(n), AllowedIPs: prefixes(allowed...)}
}

func TestConfigCheck(t *testing.T) {
	own := NewPrivateKey()
	for _, test := range []struct {
		name  string
		peers []Peer
		want  string // part of the error; empty: none
	}{
		{"apart", []Peer{peer(1, "a", "10.0.0.2/32"), peer(2, "b", "10.0.0.3/32")}, ""},
		{"nested prefixes are cryptokey routing's own way", []Peer{peer(1, "a", "10.0.0.0/8"), peer(2, "b", "10.0.0.3/32")}, ""},
		{"same prefix", []Peer{peer(1, "a", "10.0.0.2/32"), peer(2, "b", "10.0.0.2/32")}, "peers a and b both have 10.0.0.2/32"},
		{"same prefix, host bits set", []Peer{peer(1, "a", "10.0.0.1/24"), peer(2, "b", "10.0.0.9/24")}, "peers a and b both have 10.0.0.0/24"},
		{"same peer twice the same prefix", []Peer{peer(1, "a", "10.0.0.2/32", "10.0.0.2/32")}, ""},
		{"same key", []Peer{peer(1, "a", "10.0.0.2/32"), peer(1, "b", "10.0.0.3/32")}, "peers a and b have the same public key"},
		{"own key", []Peer{{Name: "a", PublicKey: own.Public()}}, "peer a has this tunnel's own public key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := Config{PrivateKey: own, Peers: test.peers}
			err := config.Check()
			if test.want == "" && err != nil {
				t.Fatal(err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestPeerForTakesTheLongestPrefix(t *testing.T) {
	config := Config{Peers: []Peer{peer(1, "wide", "0.0.0.0/0"), peer(2, "lan", "192.168.178.0/24", "fd00::/64"), peer(3, "host", "192.168.178.20/32")}}
	for _, test := range []struct {
		address, want string
	}{
		{"192.168.178.20", "host"},
		{"192.168.178.21", "lan"},
		{"8.8.8.8", "wide"},
		{"fd00::1", "lan"},
		{"fd01::1", ""},
	} {
		t.Run(test.address, func(t *testing.T) {
			var got string
			if peer, _ := config.PeerFor(netip.MustParseAddr(test.address)); peer != nil {
				got = peer.Name
			}
			if got != test.want {
				t.Fatalf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestMergeOnlyAdds(t *testing.T) {
	live := &Config{
		PrivateKey: NewPrivateKey(),
		ListenPort: 51820,
		MTU:        1280,
		Addresses:  prefixes("10.77.0.1/24"),
		Peers: []Peer{
			{Name: "home", PublicKey: key(1), AllowedIPs: prefixes("10.77.0.2/32", "10.77.0.9/32"), Endpoint: "192.0.2.1:51820"},
		},
	}
	next := &Config{
		PrivateKey: NewPrivateKey(),
		ListenPort: 51821,
		MTU:        1420,
		Addresses:  prefixes("10.78.0.1/24"),
		Peers: []Peer{
			{Name: "renamed", PublicKey: key(1), AllowedIPs: prefixes("10.77.0.2/32", "10.77.0.3/32"), PersistentKeepalive: time.Second},
			{Name: "office", PublicKey: key(2), AllowedIPs: prefixes("10.77.0.9/32", "10.77.0.4/32")},
		},
	}
	merged := merge(live, next)
	if merged.PrivateKey != live.PrivateKey || merged.ListenPort != 51820 || merged.MTU != 1280 {
		t.Errorf("a live value was replaced: %+v", merged)
	}
	if want := prefixes("10.77.0.1/24", "10.78.0.1/24"); !slices.Equal(merged.Addresses, want) {
		t.Errorf("addresses %v, want %v", merged.Addresses, want)
	}
	if len(merged.Peers) != 2 {
		t.Fatalf("peers %+v", merged.Peers)
	}
	home, office := merged.Peers[0], merged.Peers[1]
	if want := prefixes("10.77.0.2/32", "10.77.0.9/32", "10.77.0.3/32"); !slices.Equal(home.AllowedIPs, want) || home.Endpoint == "" || home.PersistentKeepalive != 0 {
		t.Errorf("live peer became %+v", home)
	}
	// 10.77.0.9/32 is still the live peer's: WireGuard would take it away.
	if want := prefixes("10.77.0.4/32"); !slices.Equal(office.AllowedIPs, want) {
		t.Errorf("new peer has %v, want %v", office.AllowedIPs, want)
	}
	if len(live.Peers[0].AllowedIPs) != 2 || len(next.Peers[1].AllowedIPs) != 2 {
		t.Error("merge changed its arguments")
	}
}

// What is in a live peer's wider prefix is that peer's until next is in force,
// and so is an address that would be this end's own.
func TestMergeTakesNothingAway(t *testing.T) {
	live := &Config{
		Addresses: prefixes("10.77.0.1/24"),
		Peers: []Peer{
			peer(1, "home", "10.77.0.0/24", "fd77::2/128"),
			peer(2, "office", "10.78.0.0/16", "10.78.1.0/24"),
		},
	}
	for _, test := range []struct {
		name string
		next Config
		want [][]netip.Prefix // this end's addresses, and the allowed IPs of each peer
	}{
		{
			"a longer prefix for a new peer",
			Config{Peers: []Peer{peer(3, "new", "10.77.0.2/32", "10.79.0.0/16")}},
			[][]netip.Prefix{nil, nil, nil, prefixes("10.79.0.0/16")},
		},
		{
			"a longer prefix for another live peer",
			Config{Peers: []Peer{peer(2, "office", "10.77.0.128/25", "10.78.0.0/16")}},
			[][]netip.Prefix{nil, nil, nil},
		},
		{
			"a longer prefix for its own peer",
			Config{Peers: []Peer{peer(1, "home", "10.77.0.2/32")}},
			[][]netip.Prefix{nil, prefixes("10.77.0.2/32"), nil},
		},
		{
			"a shorter prefix takes nothing",
			Config{Peers: []Peer{peer(3, "new", "10.0.0.0/8", "::/0")}},
			[][]netip.Prefix{nil, nil, nil, prefixes("10.0.0.0/8", "::/0")},
		},
		{
			"a peer's address for this end",
			Config{Addresses: prefixes("10.77.0.2/24", "fd77::2/64", "10.99.0.1/24")},
			[][]netip.Prefix{prefixes("10.99.0.1/24"), nil, nil},
		},
		{
			"another length of the prefix of this end's address",
			Config{Addresses: prefixes("10.77.0.1/16")},
			[][]netip.Prefix{nil, nil, nil},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			merged := merge(live, &test.next)
			got := [][]netip.Prefix{without(merged.Addresses, live.Addresses)}
			for i, peer := range merged.Peers {
				var had []netip.Prefix
				if i < len(live.Peers) {
					had = live.Peers[i].AllowedIPs
				}
				got = append(got, without(peer.AllowedIPs, had))
			}
			if !slices.EqualFunc(got, test.want, slices.Equal) {
				t.Errorf("added were %v, want %v", got, test.want)
			}
			for _, had := range live.Peers {
				if !slices.ContainsFunc(merged.Peers, func(p Peer) bool {
					return p.PublicKey == had.PublicKey && len(without(had.AllowedIPs, p.AllowedIPs)) == 0
				}) {
					t.Errorf("%s has lost something: %+v", had.Name, merged.Peers)
				}
			}
		})
	}
}

func TestChangesSendsDifferencesOnly(t *testing.T) {
	base := Config{PrivateKey: NewPrivateKey(), Peers: []Peer{
		{Name: "a", PublicKey: key(1), AllowedIPs: prefixes("10.0.0.2/32"), PersistentKeepalive: 25 * time.Second},
		{Name: "b", PublicKey: key(2), AllowedIPs: prefixes("10.0.0.3/32"), Endpoint: "192.0.2.1:51820"},
	}}
	a, b := "public_key="+hexKey(key(1))+"\n", "public_key="+hexKey(key(2))+"\n"
	const update = "update_only=true\n"
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"nothing", func(*Config) {}, ""},
		{"a name", func(c *Config) { c.Peers[0].Name = "z" }, ""},
		{"a keepalive is the keeper's", func(c *Config) { c.Peers[0].PersistentKeepalive = 0 }, ""},
		{"endpoint", func(c *Config) { c.Peers[1].Endpoint = "[2001:db8::1]:51820" }, b + update + "endpoint=[2001:db8::1]:51820\n"},
		{"an endpoint that becomes a name is the keeper's", func(c *Config) { c.Peers[1].Endpoint = "home.example.org:51820" }, ""},
		{"preshared key", func(c *Config) { c.Peers[1].PresharedKey = PresharedKey{1} }, b + update + "preshared_key=01" + strings.Repeat("00", 31) + "\n"},
		{"removed", func(c *Config) { c.Peers = c.Peers[:1] }, b + "remove=true\n"},
		{"added", func(c *Config) { c.Peers = append(slices.Clone(c.Peers), peer(3, "c", "10.0.0.4/32")) }, "public_key=" + hexKey(key(3)) + "\nallowed_ip=10.0.0.4/32\n"},
		{"added, with a keepalive that is the keeper's", func(c *Config) {
			added := peer(3, "c", "10.0.0.4/32")
			added.Endpoint, added.PersistentKeepalive = "192.0.2.3:51820", 25*time.Second
			c.Peers = append(slices.Clone(c.Peers), added)
		}, "public_key=" + hexKey(key(3)) + "\nallowed_ip=10.0.0.4/32\nendpoint=192.0.2.3:51820\n"},
		{
			"a prefix moves: first away, then there",
			func(c *Config) {
				c.Peers[0].AllowedIPs = prefixes("10.0.0.2/32", "10.0.0.3/32")
				c.Peers[1].AllowedIPs = prefixes("10.0.0.5/32")
			},
			b + update + "allowed_ip=-10.0.0.3/32\n" + a + update + "allowed_ip=10.0.0.3/32\n" + b + update + "allowed_ip=10.0.0.5/32\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			next := base
			next.Peers = slices.Clone(base.Peers)
			test.change(&next)
			if got := changes(&base, &next); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}
