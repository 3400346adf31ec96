package wireguard

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// routed is an app that counts as started, though its tunnels are claimed but
// never brought up.
func routed(t *testing.T, tunnels map[string]*Tunnel) *App {
	t.Helper()
	app := &App{
		Tunnels: tunnels,
		tunnels: make(map[string]*claimed),
		peers:   make(map[string]*claimed),
		started: make(chan struct{}),
		ended:   make(chan struct{}),
	}
	close(app.started)
	for name, config := range tunnels {
		parsed, err := config.parse(name, caddy.NewReplacer())
		if err != nil {
			t.Fatal(err)
		}
		c := &claimed{name: name, claim: tunnel.New(name).Claim(parsed.config, zap.NewNop()), hosts: parsed.hosts, resolvers: parsed.resolvers}
		app.tunnels[name] = c
		for peer := range parsed.hosts {
			app.peers[peer] = c
		}
	}
	return app
}

func twoHomes(t *testing.T) *App {
	public := func() string { return tunnel.NewPrivateKey().Public().String() }
	return routed(t, map[string]*Tunnel{
		"wg0": {
			PrivateKey: tunnel.NewPrivateKey().Base64(),
			Address:    []string{"10.77.0.1/24"},
			Resolvers:  []string{"10.77.0.2"},
			Peers: map[string]*Peer{
				"home":   {PublicKey: public(), AllowedIPs: []string{"10.77.0.2/32", "fd77::2/128", "192.168.178.0/24"}},
				"server": {PublicKey: public(), AllowedIPs: []string{"10.77.1.0/24"}},
				"nas":    {PublicKey: public(), AllowedIPs: []string{"10.77.2.0/24"}, Host: []string{"10.77.2.20"}},
			},
		},
		"wg1": {
			PrivateKey: tunnel.NewPrivateKey().Base64(),
			Address:    []string{"10.78.0.1/24"},
			Peers: map[string]*Peer{
				"office": {PublicKey: public(), AllowedIPs: []string{"10.78.0.2/32", "192.168.178.0/24", "192.168.178.20/32"}},
			},
		},
	})
}

func TestRoutes(t *testing.T) {
	app := twoHomes(t)
	v4, v6 := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
	for _, test := range []struct {
		address string
		options DialOptions
		want    string // the routes, or a part of the error
	}{
		{"home:22", DialOptions{}, "wg0/home/10.77.0.2:22 wg0/home/[fd77::2]:22"},
		{"home:22", DialOptions{Client: v4}, "wg0/home/10.77.0.2:22 wg0/home/[fd77::2]:22"},
		{"home:22", DialOptions{Client: v6}, "wg0/home/[fd77::2]:22 wg0/home/10.77.0.2:22"},
		{"home:22", DialOptions{Client: netip.MustParseAddr("::ffff:198.51.100.1")}, "wg0/home/10.77.0.2:22 wg0/home/[fd77::2]:22"},
		{"home:22", DialOptions{Tunnel: "wg1"}, "peer home is in tunnel wg0, not wg1"},
		{"nas:22", DialOptions{}, "wg0/nas/10.77.2.20:22"},
		{"server:22", DialOptions{}, "the name of peer server stands for no address"},
		{"192.168.178.9:80", DialOptions{}, "in the allowed_ips of peers in tunnels wg0 and wg1"},
		{"192.168.178.9:80", DialOptions{Tunnel: "wg0"}, "wg0/home/192.168.178.9:80"},
		{"192.168.178.9:80", DialOptions{Tunnel: "wg1"}, "wg1/office/192.168.178.9:80"},
		{"192.168.178.20:80", DialOptions{}, "wg1/office/192.168.178.20:80"},
		{"[fd77::2]:80", DialOptions{}, "wg0/home/[fd77::2]:80"},
		{"[::ffff:10.77.0.2]:80", DialOptions{}, "wg0/home/10.77.0.2:80"},
		{"9.9.9.9:53", DialOptions{}, "9.9.9.9 is in no peer's allowed_ips"},
		{"home", DialOptions{}, "is not host:port"},
		{"home:0", DialOptions{}, "has no port from 1 to 65535"},
		{"home:http", DialOptions{}, "has no port from 1 to 65535"},
		{"home:22", DialOptions{Tunnel: "wg9"}, "there is no tunnel wg9; the configured ones are: wg0 wg1"},
		{"printer.lan:80", DialOptions{Tunnel: "wg1"}, "printer.lan is neither a peer's name (those are: home nas office server) nor an IP address"},
	} {
		t.Run(test.address+" "+test.options.Tunnel+test.options.Client.String(), func(t *testing.T) {
			routes, err := app.Routes(t.Context(), test.address, test.options)
			if err != nil {
				if !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got %v, want %s", err, test.want)
				}
				return
			}
			var got []string
			for _, route := range routes {
				got = append(got, fmt.Sprintf("%s/%s/%s", route.Tunnel, route.Peer, route.Address))
			}
			if strings.Join(got, " ") != test.want {
				t.Fatalf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	app := twoHomes(t)
	for _, test := range []struct {
		host, tunnel string
		ok           bool
	}{
		{"home", "", true},
		{"home", "wg0", true},
		{"home", "wg1", false},
		{"server", "", false},
		{"10.77.1.9", "", true},
		{"10.99.0.1", "", false},
		{"192.168.178.9", "", false},
		{"192.168.178.9", "wg1", true},
		{"printer.lan", "", true},
		{"printer.lan", "wg1", false},
		{"{http.request.host}", "", true},
		{"home", "{vars.tunnel}", true},
		{"home", "wg9", false},
		{"{http.request.host}", "wg9", false},
	} {
		t.Run(test.host+" "+test.tunnel, func(t *testing.T) {
			if err := app.Check(test.host, test.tunnel); (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := app.Check("10.99.0.1", ""); !errors.Is(err, ErrNoPeer) {
		t.Errorf("%v is not ErrNoPeer", err)
	}
}

// A dial of an address that no peer has is an error at once, not a timeout.
func TestDialOutsideEveryPeer(t *testing.T) {
	app := twoHomes(t)
	if _, _, err := app.Dial(t.Context(), "tcp", "9.9.9.9:53", DialOptions{}); !errors.Is(err, ErrNoPeer) {
		t.Errorf("got %v", err)
	}
	if status := app.tunnels["wg0"].claim.Tunnel().StackKind(); status != "" {
		t.Errorf("the tunnel came up: %s", status)
	}
}
