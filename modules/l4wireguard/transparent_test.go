package l4wireguard

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// newOpenWorld is a world whose home lets the relay use any address, and answers
// through the tunnel.
func newOpenWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.allowed += " 192.168.178.0/24 0.0.0.0/0 ::/0"
	w.homeConfig = strings.Replace(w.homeConfig, "allowed_ip=10.77.0.1/32\nallowed_ip=fd77::1/128", "allowed_ip=0.0.0.0/0\nallowed_ip=::/0", 1)
	return w
}

// whoAmI answers a connection with where it comes from, and keeps it open.
func whoAmI(c net.Conn) {
	fmt.Fprintln(c, c.RemoteAddr())
	_, _ = io.Copy(io.Discard, c)
}

// dialAs connects to a relay's port that takes the PROXY protocol as a client at
// from, and returns what whoAmI says.
func (w *world) dialAs(port int, from string) (c *net.TCPConn, seen netip.AddrPort) {
	w.t.Helper()
	c = w.dial(port)
	client := netip.MustParseAddrPort(from)
	if _, err := c.Write(header(w.t, net.TCPAddrFromAddrPort(client), port)); err != nil {
		w.t.Fatal(err)
	}
	text, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		w.t.Fatalf("as %s: %v", from, err)
	}
	return c, netip.MustParseAddrPort(strings.TrimSpace(text))
}

// header is a PROXY protocol header that names a client which has called port.
func header(t testing.TB, client net.Addr, port int) []byte {
	t.Helper()
	var to net.Addr
	switch c := client.(type) {
	case *net.TCPAddr:
		to = &net.TCPAddr{IP: c.IP, Port: port}
	case *net.UDPAddr:
		to = &net.UDPAddr{IP: c.IP, Port: port}
	}
	header, err := proxyproto.HeaderProxyFromAddrs(2, client, to).Format()
	if err != nil {
		t.Fatal(err)
	}
	return header
}

// proxied is a layer4 server whose clients begin with a PROXY protocol header.
func proxied(listen, handler string) string {
	return fmt.Sprintf("%s {\nroute {\nproxy_protocol\n%s\n}\n}\n", listen, handler)
}

func TestTransparentStream(t *testing.T) {
	w := newOpenWorld(t)
	w.serveTCP(7, whoAmI)
	own4, own6 := netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")
	port, port4, port6 := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp")
	w.load(proxied("127.0.0.1:$1", "wireguard home:7 {\ntransparent\n}")+
		proxied("127.0.0.1:$2", "wireguard 10.77.0.2:7 {\ntransparent\n}")+
		proxied("127.0.0.1:$3", "wireguard [fd77::2]:7 {\ntransparent\n}"), port, port4, port6)

	for _, tt := range []struct {
		name, client string
		port         int
		want         netip.Addr // the client's own if invalid
		reason       string
	}{
		{"IPv4", "203.0.113.9:4711", port, netip.Addr{}, ""},
		{"IPv6", "[2001:db8::9]:4711", port, netip.Addr{}, ""},
		{"IPv4 in IPv6 form", "[::ffff:203.0.113.8]:4711", port, netip.MustParseAddr("203.0.113.8"), ""},
		{"private address of nobody", "192.168.179.1:4711", port, netip.Addr{}, ""},
		{"IPv4 to IPv6", "203.0.113.9:4712", port6, own6, "of different families"},
		{"IPv6 to IPv4", "[2001:db8::9]:4712", port4, own4, "of different families"},
		{"loopback", "127.0.0.1:4711", port, own4, "is loopback"},
		{"IPv6 loopback", "[::1]:4711", port, own6, "is loopback"},
		{"link-local", "169.254.1.1:4711", port, own4, "is link-local"},
		{"IPv6 link-local", "[fe80::1]:4711", port, own6, "is link-local"},
		{"multicast", "224.0.0.1:4711", port, own4, "is multicast"},
		{"IPv6 multicast", "[ff02::1]:4711", port, own6, "is multicast"},
		{"broadcast", "255.255.255.255:4711", port, own4, "is broadcast"},
		{"unspecified", "0.0.0.0:4711", port, own4, "is unspecified"},
		{"IPv6 unspecified", "[::]:4711", port, own6, "is unspecified"},
		{"this network", "0.1.2.3:4711", port, own4, "is unspecified"},
		{"the tunnel's network", "10.77.0.9:4711", port, own4, "in the tunnel's own network 10.77.0.0/24"},
		{"the tunnel's IPv6 network", "[fd77::9]:4711", port, own6, "in the tunnel's own network fd77::/64"},
		{"home's own address", "10.77.0.2:4711", port, own4, "in the tunnel's own network"},
		{"home's LAN", "192.168.178.30:4711", port, own4, "192.168.178.0/24, which is in the allowed_ips of peer home"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := netip.MustParseAddrPort(tt.client)
			c, seen := w.dialAs(tt.port, tt.client)
			if !tt.want.IsValid() {
				tt.want = client.Addr()
			}
			if seen.Addr() != tt.want || tt.reason == "" && seen.Port() != client.Port() {
				t.Errorf("home sees %s", seen)
			}
			c.Close()
			line := w.lines.next("relayed connection")
			has(t, line, map[string]any{"source": seen})
			reason, given := line["source_reason"]
			if given != (tt.reason != "") || !strings.Contains(fmt.Sprint(reason), tt.reason) && given {
				t.Errorf("source_reason is %v, want %q", reason, tt.reason)
			}
		})
	}
}

// A client without an IP address, and a handler that isn't transparent.
func TestTransparentNot(t *testing.T) {
	w := newOpenWorld(t)
	w.serveTCP(7, whoAmI)
	port, socket := testnet.FreePort(t, "tcp"), filepath.Join(w.dir, "socket")
	w.load("unix/"+socket+" {\nroute {\nwireguard home:7 {\ntransparent\n}\n}\n}\n"+
		proxied("127.0.0.1:$1", "wireguard home:7"), port)

	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustRead(t, c, "10.77.0.1:")
	c.Close()
	has(t, w.lines.next("relayed connection"), map[string]any{"source_reason": "the client has no IP address"})

	other, seen := w.dialAs(port, "203.0.113.9:4711")
	if seen.Addr() != netip.MustParseAddr("10.77.0.1") {
		t.Errorf("home sees %s without being told to", seen)
	}
	other.Close()
	has(t, w.lines.next("relayed connection"), map[string]any{"source": seen, "source_reason": nil})
}

// The client's port is used unless that would be a second connection of the same
// four numbers.
func TestTransparentPortClash(t *testing.T) {
	w := newOpenWorld(t)
	w.serveTCP(7, whoAmI)
	w.serveTCP(8, whoAmI)
	first, second, third := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp")
	w.load(proxied("127.0.0.1:$1", "wireguard home:7 {\ntransparent\n}")+
		proxied("127.0.0.1:$2", "wireguard home:7 {\ntransparent\n}")+
		proxied("127.0.0.1:$3", "wireguard home:8 {\ntransparent\n}"), first, second, third)
	for _, client := range []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:4711"), netip.MustParseAddrPort("[2001:db8::9]:4711")} {
		_, seen := w.dialAs(first, client.String())
		if seen != client {
			t.Errorf("home sees %s, want %s", seen, client)
		}
		clash, seen := w.dialAs(second, client.String())
		if seen.Addr() != client.Addr() || seen.Port() == client.Port() {
			t.Errorf("home sees %s, want another port of %s", seen, client)
		}
		clash.Close()
		line := w.lines.next("relayed connection")
		has(t, line, map[string]any{"source": seen})
		if reason := fmt.Sprint(line["source_reason"]); !strings.Contains(reason, "port 4711 of the client's address is in use") {
			t.Errorf("source_reason is %q", reason)
		}
		if _, seen := w.dialAs(third, client.String()); seen != client {
			t.Errorf("another upstream sees %s, want %s", seen, client)
		}
	}
}

// Both at once: the header names whom the source cannot.
func TestTransparentWithProxyProtocol(t *testing.T) {
	w := newOpenWorld(t)
	w.serveTCP(7, func(c net.Conn) {
		inner := proxyproto.NewConn(c)
		fmt.Fprintf(inner, "%s says %s\n", c.RemoteAddr().(*net.TCPAddr).IP, inner.RemoteAddr())
	})
	port := testnet.FreePort(t, "tcp")
	w.load(proxied("127.0.0.1:$1", "wireguard home:7 {\ntransparent\nproxy_protocol v2\n}"), port)
	for client, want := range map[string]string{
		"203.0.113.9:4711": "203.0.113.9 says 203.0.113.9:4711\n",
		"10.77.0.9:4711":   "10.77.0.1 says 10.77.0.9:4711\n",
	} {
		c := w.dial(port)
		if _, err := c.Write(header(t, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(client)), port)); err != nil {
			t.Fatal(err)
		}
		mustRead(t, c, want)
	}
}

// A home that is not ready for it gets no connection, and the log says what it
// lacks.
func TestTransparentHomeNotReady(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, whoAmI)
	w.serveUDP(7, func(_ []byte, from net.Addr) []byte { return []byte(from.String()) })
	tcp, udp, up := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "udp"), testnet.FreePort(t, "tcp")
	w.load(proxied("127.0.0.1:$1", "wireguard 10.77.0.2:7 {\ntransparent\ndial_timeout 1s\n}")+
		proxied("udp/127.0.0.1:$2", "wireguard home:7 {\ntransparent\nidle_timeout 500ms\n}")+
		"127.0.0.1:$3 {\nroute {\nwireguard home:7\n}\n}", tcp, udp, up)
	mustRead(t, w.dial(up), "10.77.0.1:")

	c := w.dial(tcp)
	if _, err := c.Write(header(t, net.TCPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.9:4711")), tcp)); err != nil {
		t.Fatal(err)
	}
	mustReset(t, c)
	line := w.lines.next("no upstream could be dialed")
	for _, want := range []string{"203.0.113.9", "10.77.0.2:7 does not answer", "0.0.0.0/0, ::/0", "ip -4 rule add from 10.77.0.2 table 51820"} {
		if got := fmt.Sprint(line["error"]); !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}

	if _, err := w.dialUDP(udp).Write(append(header(t, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.9:4711")), udp), "who?"...)); err != nil {
		t.Fatal(err)
	}
	has(t, w.lines.next("relayed datagrams"), map[string]any{"source": "203.0.113.9:4711", "datagrams_written": 0, "hint": noAnswers})
}

func TestTransparentWarnings(t *testing.T) {
	for _, tt := range []struct {
		name, servers string
		want          []string
	}{
		{"home", ":$1 {\nroute {\nwireguard home:7 {\ntransparent\n}\n}\n}", nil},
		{"home's addresses", "127.0.0.1:$1 {\nroute {\nwireguard 10.77.0.2:7 {\ntransparent\n}\n}\n}", nil},
		{"one family", ":$1 {\nroute {\nwireguard 10.77.0.2:7 {\ntransparent\n}\n}\n}", []string{"no IPv6 address"}},
		{"the other family", "127.0.0.1:$1 {\nroute {\nwireguard [fd77::2]:7 {\ntransparent\n}\n}\n}", []string{"no IPv4 address"}},
		{"LAN", "127.0.0.1:$1 {\nroute {\nwireguard 192.168.178.30:7 {\ntransparent\n}\n}\n}", []string{"a machine behind peer home", "add 192.168.178.30/32"}},
		{"not transparent", ":$1 {\nroute {\nwireguard 192.168.178.30:7\n}\n}", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newOpenWorld(t)
			w.serveTCP(7, whoAmI)
			port := testnet.FreePort(t, "tcp")
			// The last server's line comes after all warnings.
			w.load(tt.servers+"\n127.0.0.1:$2 {\nroute {\nwireguard home:7\n}\n}", testnet.FreePort(t, "tcp"), port)
			c := w.dial(port)
			mustRead(t, c, "10.77.0.1:")
			c.Close()
			w.lines.next("relayed connection")
			var got []string
			for _, line := range w.lines.skipped {
				if strings.Contains(line, "transparent will not serve all clients") {
					got = append(got, line)
				}
			}
			if (len(got) > 0) != (len(tt.want) > 0) {
				t.Errorf("warned of %s", got)
			}
			for _, want := range tt.want {
				if !strings.Contains(strings.Join(got, ""), want) {
					t.Errorf("no %q in %s", want, got)
				}
			}
		})
	}
}

// asked is a UDP client whose every datagram has a PROXY protocol header, since
// only the first one of a connection is read as such and a reload begins
// another connection.
func (w *world) asked(c *net.UDPConn, as string) (seen netip.AddrPort) {
	w.t.Helper()
	question := append(header(w.t, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(as)), c.RemoteAddr().(*net.UDPAddr).Port), "who?"...)
	buf := make([]byte, 100)
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); {
		_, _ = c.Write(question)
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if n, err := c.Read(buf); err == nil {
			return netip.MustParseAddrPort(string(buf[:n]))
		}
	}
	w.t.Fatalf("no answer for %s", as)
	return netip.AddrPort{}
}

func (w *world) serveWhoAmI(port uint16) {
	w.t.Helper()
	w.serveUDP(port, func(_ []byte, from net.Addr) []byte { return []byte(from.String()) })
}

func TestTransparentDatagrams(t *testing.T) {
	w := newOpenWorld(t)
	w.serveWhoAmI(7)
	w.serveWhoAmI(8)
	own4 := netip.MustParseAddr("10.77.0.1")
	var ports []int
	for range 3 {
		ports = append(ports, testnet.FreePort(t, "udp"))
	}
	// The first flow must outlive the clash, also on a busy machine.
	w.load(proxied("udp/127.0.0.1:$1", "wireguard home:7 {\ntransparent\nidle_timeout 4s\n}")+
		proxied("udp/127.0.0.1:$2", "wireguard home:7 {\ntransparent\n}")+
		proxied("udp/127.0.0.1:$3", "wireguard home:8 {\ntransparent\n}"), ports...)

	// ended waits for so many flows to end, and returns their lines by source.
	ended := func(flows int) map[string]map[string]any {
		lines := make(map[string]map[string]any)
		for range flows {
			line := w.lines.next("relayed datagrams")
			lines[fmt.Sprint(line["source"])] = line
		}
		return lines
	}

	clients := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:4711"), netip.MustParseAddrPort("[2001:db8::9]:4711")}
	for _, client := range clients {
		first := w.dialUDP(ports[0])
		if seen := w.asked(first, client.String()); seen != client {
			t.Errorf("home sees %s, want %s", seen, client)
		}
		clash := w.dialUDP(ports[1])
		seen := w.asked(clash, client.String())
		if seen.Addr() != client.Addr() || seen.Port() == client.Port() {
			t.Errorf("home sees %s, want another port of %s", seen, client)
		}
		if seen := w.asked(w.dialUDP(ports[2]), client.String()); seen != client {
			t.Errorf("another upstream sees %s, want %s", seen, client)
		}
		if seen := w.asked(first, client.String()); seen != client {
			t.Errorf("after a clash home sees %s, want %s", seen, client)
		}
	}

	// An ended flow frees its address.
	lines := ended(len(clients))
	for _, client := range clients {
		has(t, lines[client.String()], map[string]any{"source": client, "source_reason": nil, "hint": nil})
		if seen := w.asked(w.dialUDP(ports[0]), client.String()); seen != client {
			t.Errorf("the next flow has the source %s, want %s", seen, client)
		}
	}
	seen := w.asked(w.dialUDP(ports[0]), "10.77.0.9:4711")
	if seen.Addr() != own4 {
		t.Errorf("home sees %s, want the tunnel's address", seen)
	}
	lines = ended(len(clients) + 1)
	for _, client := range clients {
		has(t, lines[client.String()], map[string]any{"source": client})
	}
	has(t, lines[seen.String()], map[string]any{
		"source_reason": "the client's address 10.77.0.9 is in the tunnel's own network 10.77.0.0/24",
	})
}

// A reload keeps a flow unless its source would be another.
func TestTransparentDatagramsReload(t *testing.T) {
	w := newOpenWorld(t)
	w.serveWhoAmI(7)
	port := testnet.FreePort(t, "udp")
	off, on := proxied("udp/127.0.0.1:$1", "wireguard home:7"), proxied("udp/127.0.0.1:$1", "wireguard home:7 {\ntransparent\n}")
	client := netip.MustParseAddrPort("203.0.113.9:4711")
	allowed := w.allowed

	w.load(off, port)
	c := w.dialUDP(port)
	before := w.asked(c, client.String())
	for i, step := range []struct {
		name, servers, allowed string
		transparent            bool
	}{
		{"off again", off, allowed, false},
		{"on", on, allowed, true},
		{"on again", on, allowed, true},
		{"on, and the client in home's network", on, allowed + " 203.0.113.0/24", false},
		{"on, and no more in it", on, allowed, true},
		{"off", off, allowed, false},
	} {
		w.allowed = step.allowed
		w.load(step.servers, port)
		seen := w.asked(c, client.String())
		// The stopped server may still have had the first datagram.
		for range 10 {
			if seen.Addr() == client.Addr() == step.transparent {
				break
			}
			seen = w.asked(c, client.String())
		}
		if wanted := before.Addr() == client.Addr() == step.transparent; wanted && seen != before {
			t.Errorf("%d, %s: home sees %s and saw %s: the flow was not kept", i, step.name, seen, before)
		} else if !wanted {
			has(t, w.lines.next("relayed datagrams"), map[string]any{"reason": "replaced", "source": before})
		}
		if step.transparent && seen != client || !step.transparent && seen.Addr() != netip.MustParseAddr("10.77.0.1") {
			t.Errorf("%d, %s: home sees %s", i, step.name, seen)
		}
		if n := relay.Flows.Len(); n != 1 {
			t.Errorf("%d, %s: %d flows", i, step.name, n)
		}
		before = seen
	}
}

// A stream keeps its source through reloads.
func TestTransparentStreamReload(t *testing.T) {
	w := newOpenWorld(t)
	w.serveTCP(7, func(c net.Conn) {
		fmt.Fprintln(c, c.RemoteAddr())
		echo(c)
	})
	port := testnet.FreePort(t, "tcp")
	w.load(proxied("127.0.0.1:$1", "wireguard home:7 {\ntransparent\n}"), port)
	c, seen := w.dialAs(port, "203.0.113.9:4711")
	w.load(proxied("127.0.0.1:$1", "wireguard home:7"), port)
	mustEcho(t, c, "still here")
	if _, now := w.dialAs(port, "203.0.113.9:4711"); now.Addr() == seen.Addr() {
		t.Errorf("a new connection has the source %s", now)
	}
	mustEcho(t, c, "and still")
}
