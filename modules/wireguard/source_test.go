package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

func TestSource(t *testing.T) {
	for _, tt := range []struct {
		name, allowed, client string
		reason                string // "" if the source is the client's
	}{
		{"home's own address only", "10.77.0.2/32 fd77::2/128", "203.0.113.9", ""},
		{"default routes", "0.0.0.0/0 ::/0", "203.0.113.9", ""},
		{"IPv6 default routes", "0.0.0.0/0 ::/0", "2001:db8::9", ""},
		{"halves of the internet", "0.0.0.0/1 128.0.0.0/1", "203.0.113.9", ""},
		{"all global IPv6", "10.77.0.2/32 2000::/3", "2001:db8::9", ""},
		{"the widest prefix of somebody's", "203.0.0.0/8", "203.0.113.9", "203.0.0.0/8, which is in the allowed_ips of peer home"},
		{"wider", "202.0.0.0/7", "203.0.113.9", ""},
		{"the widest IPv6 prefix of somebody's", "2001::/16", "2001:db8::9", "2001::/16, which"},
		{"wider IPv6", "2000::/15", "2001:db8::9", ""},
		{"home's IPv6 prefix beside a default route", "::/0 2001:db8::/56", "2001:db8::9", "2001:db8::/56, which"},
		{"another client beside a default route", "::/0 2001:db8::/56", "2001:db8:1::9", ""},
		{"private network", "10.0.0.0/8", "10.1.2.3", "10.0.0.0/8, which"},
		{"all unique local addresses", "fc00::/7", "fd01::9", "fc00::/7, which"},
		{"wider than those", "f000::/4", "fd01::9", ""},
		{"the tunnel's own network", "10.77.0.2/32", "10.77.0.77", "the tunnel's own network 10.77.0.0/24"},
		{"IPv4 in IPv6 form", "10.77.0.2/32", "::ffff:203.0.113.9", ""},
		{"IPv4-mapped loopback", "10.77.0.2/32", "::ffff:127.0.0.1", "is loopback"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			app := routed(t, map[string]*Tunnel{"wg0": {
				PrivateKey: tunnel.NewPrivateKey().Base64(),
				Address:    []string{"10.77.0.1/24", "fd77::1/64"},
				Peers:      map[string]*Peer{"home": {PublicKey: tunnel.NewPrivateKey().Public().String(), AllowedIPs: strings.Fields(tt.allowed)}},
			}})
			client := netip.MustParseAddr(tt.client)
			route := Route{Tunnel: "wg0", Peer: "home", Address: netip.MustParseAddrPort("10.77.0.2:22")}
			if client.Unmap().Is6() {
				route.Address = netip.MustParseAddrPort("[fd77::2]:22")
			}
			options := DialOptions{Client: client, ClientPort: 4711}
			if source, reason := app.Source(route, options); source.IsValid() || reason != "" {
				t.Errorf("without transparent: %s, %q", source, reason)
			}
			options.Transparent = true
			source, reason := app.Source(route, options)
			want := netip.AddrPort{}
			if tt.reason == "" {
				want = netip.AddrPortFrom(client.Unmap(), 4711)
			}
			if source != want || !strings.Contains(reason, tt.reason) || tt.reason == "" && reason != "" {
				t.Errorf("got %s, %q, want %s, %q", source, reason, want, tt.reason)
			}
		})
	}
}

func TestFromSource(t *testing.T) {
	client, anyPort, own := netip.MustParseAddrPort("203.0.113.9:4711"), netip.MustParseAddrPort("203.0.113.9:0"), netip.AddrPort{}
	// As they come from the stack, by way of the tunnel.
	wrapped := func(err error) error { return fmt.Errorf("peer home is up: %w", &net.OpError{Op: "dial", Err: err}) }
	inUse, full, refused := wrapped(syscall.EADDRNOTAVAIL), wrapped(netstack.ErrTooManyClients), wrapped(syscall.ECONNREFUSED)
	for _, tt := range []struct {
		name   string
		source netip.AddrPort
		errs   []error // of the dials in turn; nil after them
		want   []netip.AddrPort
		reason string
		err    error
	}{
		{"the client's", client, nil, []netip.AddrPort{client}, "", nil},
		{"the tunnel's", own, nil, []netip.AddrPort{own}, "", nil},
		{"refused", client, []error{refused}, []netip.AddrPort{client}, "", syscall.ECONNREFUSED},
		{"port in use", client, []error{inUse}, []netip.AddrPort{client, anyPort}, "port 4711 of the client's address is in use towards 10.77.0.2:22", nil},
		{"all ports in use", client, []error{inUse, inUse, inUse, inUse, inUse}, []netip.AddrPort{client, anyPort, anyPort, anyPort, anyPort}, "", syscall.EADDRNOTAVAIL},
		{"too many clients", client, []error{full}, []netip.AddrPort{client, own}, "the client's address 203.0.113.9 is one too many", nil},
		{"too many clients, and refused", client, []error{full, refused}, []netip.AddrPort{client, own}, "", syscall.ECONNREFUSED},
		{"too many clients meanwhile", client, []error{inUse, full}, []netip.AddrPort{client, anyPort, own}, "is one too many", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []netip.AddrPort
			_, reason, err := fromSource(tt.source, "", netip.MustParseAddrPort("10.77.0.2:22"), func(source netip.AddrPort) (net.Conn, error) {
				got = append(got, source)
				if len(got) <= len(tt.errs) {
					return nil, tt.errs[len(got)-1]
				}
				return nil, nil
			})
			if !slices.Equal(got, tt.want) {
				t.Errorf("dialed from %v, want %v", got, tt.want)
			}
			if !errors.Is(err, tt.err) {
				t.Errorf("error is %v, want %v", err, tt.err)
			}
			if tt.err == nil && (!strings.Contains(reason, tt.reason) || tt.reason == "" && reason != "") {
				t.Errorf("reason is %q, want %q", reason, tt.reason)
			}
		})
	}
}

func TestCheckTransparent(t *testing.T) {
	app := twoHomes(t)
	for _, tt := range []struct {
		name, host, tunnel string
		ipv4, ipv6         bool
		want               []string
	}{
		{"peer", "home", "", true, true, nil},
		{"peer's address", "10.77.0.2", "", true, false, nil},
		{"one family", "10.77.0.2", "", true, true, []string{"10.77.0.2 has no IPv6 address"}},
		{"the other family", "fd77::2", "", true, false, []string{"fd77::2 has no IPv4 address"}},
		{"peer of one family", "nas", "", true, true, []string{"nas has no IPv6 address"}},
		{"peer's host in a network", "10.77.2.20", "", true, false, nil},
		{"machine behind a peer", "10.77.2.21", "", true, false, []string{"10.77.2.21 seems to be a machine behind peer nas"}},
		{"machine behind one of two", "192.168.178.9", "wg0", true, false, []string{"machine behind peer home"}},
		{"peer's address in a network", "192.168.178.20", "wg1", true, false, nil},
		{"name", "printer.lan", "", true, true, nil},
		{"peer without an address", "server", "", true, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := app.CheckTransparent(tt.host, tt.tunnel, tt.ipv4, tt.ipv6)
			if len(got) != len(tt.want) {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for i := range got {
				if !strings.Contains(got[i], tt.want[i]) {
					t.Errorf("got %q, want %q", got[i], tt.want[i])
				}
			}
		})
	}
}

// With Caddy at home, all it takes is that the relay's peer may use every
// address: sites see the client.
func TestTransparentCaddyAtHome(t *testing.T) {
	relay := newOther(t)
	config := string(relay.config(site("{http.request.remote}")))
	load(t, []byte(strings.Replace(config, `"allowed_ips": ["10.77.0.2/32"]`, `"allowed_ips": ["0.0.0.0/0", "::/0"]`, 1)))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := netip.MustParseAddrPort("203.0.113.9:4711")
	conn, err := relay.claim.DialTCP(ctx, client, netip.MustParseAddrPort("10.77.0.1:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if body, err := get(conn); err != nil || body != client.String() {
		t.Errorf("the site has seen %q, %v", body, err)
	}
}
