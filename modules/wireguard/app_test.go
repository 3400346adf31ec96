package wireguard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	_ "github.com/mholt/caddy-l4/layer4"
	_ "github.com/mholt/caddy-l4/modules/l4close"
	_ "github.com/mholt/caddy-l4/modules/l4echo"
	"github.com/miekg/dns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// patience bounds every wait. It decides nothing but a hopeless case.
const patience = 30 * time.Second

// other is the other end of the tunnel under test, without a Caddy.
type other struct {
	claim     *tunnel.Claim
	listen    uint16 // the port that Caddy's end listens on
	dir       string
	publicKey tunnel.PublicKey

	relayKey  tunnel.PrivateKey // Caddy's
	preshared tunnel.PresharedKey
}

// newOther makes both ends' keys and brings up the other end, 10.77.0.2.
func newOther(t *testing.T) *other {
	t.Helper()
	port := testnet.FreePort(t, "udp")
	dir := t.TempDir()
	key, own := tunnel.NewPrivateKey(), tunnel.NewPrivateKey()
	preshared := tunnel.NewPresharedKey()
	for name, content := range map[string]string{"wg0.key": key.Base64(), "home.psk": preshared.Base64()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := &other{listen: uint16(port), dir: dir, publicKey: own.Public(), relayKey: key, preshared: preshared}
	o.claim = tunnel.New("other").Claim(&tunnel.Config{
		PrivateKey: own,
		Addresses:  []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24")},
		MTU:        1280,
		Peers: []tunnel.Peer{{
			Name:                "caddy",
			PublicKey:           key.Public(),
			PresharedKey:        preshared,
			AllowedIPs:          []netip.Prefix{netip.MustParsePrefix("10.77.0.1/32")},
			Endpoint:            fmt.Sprintf("127.0.0.1:%d", port),
			PersistentKeepalive: 25 * time.Second,
		}},
	}, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
	if err := o.claim.Prepare(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.claim.Release() })
	return o
}

// config is a configuration with the tunnel wg0 and the given other apps.
func (o *other) config(apps string) []byte {
	if apps != "" {
		apps = "," + apps
	}
	return fmt.Appendf(nil, `{
		"admin": {"disabled": true, "config": {"persist": false}},
		"logging": {"logs": {"default": {"level": "ERROR"}}},
		"storage": {"module": "file_system", "root": %q},
		"apps": {
			"wireguard": {"tunnels": {"wg0": {
				"private_key": "{file.%s}",
				"address": ["10.77.0.1/24"],
				"listen_port": %d,
				"peers": {"home": {"public_key": %q, "preshared_key": "{file.%s}", "allowed_ips": ["10.77.0.2/32"]}}
			}}}
			%s
		}
	}`, o.dir, filepath.Join(o.dir, "wg0.key"), o.listen, o.publicKey, filepath.Join(o.dir, "home.psk"), apps)
}

// load runs a configuration, and stops Caddy at the end of the test.
func load(t *testing.T, config []byte) {
	t.Helper()
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
}

func (o *other) dial(t *testing.T, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := o.claim.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(netip.MustParseAddr("10.77.0.1"), port))
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	return conn, nil
}

// site is an http app with a site on the tunnel that answers text.
func site(text string) string {
	return fmt.Sprintf(`"http": {"servers": {"tunnel": {
		"listen": ["wireguard/wg0:80"],
		"automatic_https": {"disable": true},
		"protocols": ["h1"],
		"routes": [{"handle": [{"handler": "static_response", "body": %q}]}]
	}}}`, text)
}

// get fetches the site's page over conn.
func get(conn net.Conn) (string, error) {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: home\r\n\r\n"); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func TestValidateOpensNoSocket(t *testing.T) {
	o := newOther(t)
	config := new(caddy.Config)
	if err := json.Unmarshal(o.config(site("hello")), config); err != nil {
		t.Fatal(err)
	}
	// Somebody else's: validating must not mind.
	taken, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(o.listen)})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := caddy.Validate(config); err != nil {
		t.Fatal(err)
	}
	if references, _ := pool.References("wg0"); references != 0 {
		t.Errorf("%d references on the tunnel are left", references)
	}
}

// Health checks begin in Provision, and with them dials.
func TestDialWaitsForStart(t *testing.T) {
	app := twoHomes(t)
	app.started = make(chan struct{})
	dialed := make(chan error, 1)
	go func() {
		_, _, err := app.Dial(t.Context(), "tcp", "home:80", DialOptions{})
		dialed <- err
	}()
	if err := app.Cleanup(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-dialed:
		if !errors.Is(err, errNotStarted) {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it waits for ever")
	}
	if kind := app.tunnels["wg0"].claim.Tunnel().StackKind(); kind != "" {
		t.Errorf("the tunnel came up: %s", kind)
	}
}

func TestSiteOnTheTunnel(t *testing.T) {
	o := newOther(t)
	load(t, o.config(site("hello from inside")))
	conn, err := o.dial(t, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if body, err := get(conn); err != nil || body != "hello from inside" {
		t.Fatalf("%q, %v", body, err)
	}
	if _, err := o.dial(t, 81); err == nil {
		t.Error("a port that nothing listens on answers")
	}
}

func TestDatagramsOnTheTunnel(t *testing.T) {
	o := newOther(t)
	load(t, o.config(`"layer4": {"servers": {"echo": {
		"listen": ["wireguard+udp/wg0:7"],
		"routes": [{"handle": [{"handler": "echo"}]}]
	}}}`))
	conn, err := o.claim.DialUDP(t.Context(), netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.1:7"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "ping" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
}

// TestReloadsRefuseNobody reloads while clients connect: every one of them
// is accepted by a server that is still there, or handed on to one, and gets an answer.
func TestReloadsRefuseNobody(t *testing.T) {
	o := newOther(t)
	load(t, o.config(site("0")))

	const reloads = 15
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	answers := make([]int, 4)
	for client := range answers {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for ctx.Err() == nil {
				conn, err := o.dial(t, 80)
				if err != nil {
					t.Errorf("client %d: %v", client, err)
					return
				}
				if _, err := get(conn); err != nil {
					t.Errorf("client %d after %d answers: %v", client, answers[client], err)
				}
				conn.Close()
				answers[client]++
			}
		}()
	}
	for n := range reloads {
		if err := caddy.Load(o.config(site(fmt.Sprint(n+1))), true); err != nil {
			t.Error(err)
		}
	}
	cancel()
	clients.Wait()
	t.Logf("%v answers during %d reloads", answers, reloads)

	conn, err := o.dial(t, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if body, err := get(conn); err != nil || body != fmt.Sprint(reloads) {
		t.Errorf("%q, %v", body, err)
	}
}

func TestRejectedReloadChangesNothing(t *testing.T) {
	o := newOther(t)
	load(t, o.config(site("the first")))
	conn, err := o.dial(t, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		name   string
		change func(string) string
		want   string
	}{
		{"in Provision, ours", func(c string) string { return strings.Replace(c, "10.77.0.2/32", "10.77.0.2/33", 1) }, "allowed_ips"},
		{"in Provision, another's", func(c string) string { return strings.Replace(c, `"static_response"`, `"no_such_handler"`, 1) }, "no_such_handler"},
		{"in Start, ours", func(c string) string {
			busy, err := net.ListenUDP("udp", nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { busy.Close() })
			return strings.Replace(c, fmt.Sprintf(`"listen_port": %d`, o.listen), fmt.Sprintf(`"listen_port": %d`, busy.LocalAddr().(*net.UDPAddr).Port), 1)
		}, "another program has this port"},
		{"in Start, another tunnel still has the port", func(c string) string {
			return strings.NewReplacer(`"wg0": {`, `"office": {`, "wireguard/wg0:80", "wireguard/office:80").Replace(c)
		}, "because tunnel wg0 has it"},
		{"in Start, another's", func(c string) string {
			return strings.Replace(c, "wireguard/wg0:80", "wireguard/wg0:80\", \"unix//no/such/folder/socket", 1)
		}, "socket"},
		{"in Validate, two servers at one port", func(c string) string {
			return strings.Replace(c, `"http": {`, `"layer4": {"servers": {"x": {"listen": ["wireguard/wg0:80"], "routes": [{"handle": [{"handler": "echo"}]}]}}}, "http": {`, 1)
		}, "wireguard/wg0:80: this configuration already has a server there"},
		{"in Start, two servers at one port", func(c string) string { // which is not seen before
			c = strings.Replace(c, `"protocols": ["h1"]`, `"protocols": ["h2c"]`, 1)
			return strings.Replace(c, `"http": {`, `"layer4": {"servers": {"x": {"listen": ["wireguard/wg0:80"], "routes": [{"handle": [{"handler": "echo"}]}]}}}, "http": {`, 1)
		}, "wireguard/wg0:80: this configuration already has a server there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := test.change(string(o.config(site("the second"))))
			err := caddy.Load([]byte(config), true)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
			if body, err := get(conn); err != nil || body != "the first" {
				t.Errorf("the open connection: %q, %v", body, err)
			}
			fresh, err := o.dial(t, 80)
			if err != nil {
				t.Fatal(err)
			}
			defer fresh.Close()
			if body, err := get(fresh); err != nil || body != "the first" {
				t.Errorf("a new connection: %q, %v", body, err)
			}
		})
	}
}

// A configuration that is refused because layer4 cannot have one of its addresses
// gets no client of the others, which are also those of the one that goes on.
func TestRefusedReloadServesNobodyOnTheTunnel(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const server = `"%s": {"listen": ["%s"], "routes": [{"handle": [{"handler": "%s"}]}]}`
	servers := func(handler, more string) string {
		return `"layer4": {"servers": {` + fmt.Sprintf(server, "tcp", "wireguard/wg0:7", handler) + "," +
			fmt.Sprintf(server, "udp", "wireguard+udp/wg0:7", handler) + more + `}}`
	}
	o := newOther(t)
	load(t, o.config(servers("echo", "")))
	// Servers start in any order.
	for range 10 {
		err := caddy.Load(o.config(servers("close", ","+fmt.Sprintf(server, "taken", taken.Addr(), "echo"))), true)
		if err == nil || !strings.Contains(err.Error(), "in use") {
			t.Fatalf("got %v, want an error about an address in use", err)
		}
	}
	udp, err := o.claim.DialUDP(t.Context(), netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.1:7"))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for range 20 {
		tcp, err := o.dial(t, 7)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		for network, conn := range map[string]net.Conn{"tcp": tcp, "udp": udp} {
			conn.SetDeadline(time.Now().Add(patience))
			if _, err := conn.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "ping" {
				t.Fatalf("over %s: %q, %v", network, buf[:n], err)
			}
		}
	}
}

// TestNameThroughResolvers looks a name up at a DNS server inside the tunnel.
func TestNameThroughResolvers(t *testing.T) {
	o := newOther(t)
	packets, err := o.claim.ListenUDP(netip.MustParseAddrPort("10.77.0.2:53"))
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
		answer := new(dns.Msg).SetReply(question)
		if q := question.Question[0]; q.Name == "printer.lan." && q.Qtype == dns.TypeA {
			answer.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass, Ttl: 1},
				A:   net.IPv4(10, 77, 0, 2),
			}}
		}
		w.WriteMsg(answer)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
	load(t, []byte(strings.Replace(string(o.config("")), `"listen_port"`, `"resolvers": ["10.77.0.2"], "listen_port"`, 1)))
	app, err := caddy.ActiveContext().App("wireguard")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	routes, err := app.(*App).Routes(ctx, "printer.lan:631", DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := Route{Tunnel: "wg0", Peer: "home", Address: netip.MustParseAddrPort("10.77.0.2:631")}
	if len(routes) != 1 || routes[0] != want {
		t.Errorf("got %v, want %v", routes, want)
	}
	if _, err := app.(*App).Routes(ctx, "scanner.lan:631", DialOptions{}); err == nil || !strings.Contains(err.Error(), "resolving scanner.lan through tunnel wg0") {
		t.Errorf("a name that is not there: %v", err)
	}
}
