package l4wireguard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/homeward-relay/homeward/modules/internal/netstack/gvisor"
	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestLiveChanges changes a running relay by every way that Caddy has for it. A
// connection and a flow that are open all the while notice nothing, and nothing
// is touched but what is changed.
func TestLiveChanges(t *testing.T) {
	w := newWorld(t)
	w.admin = true
	w.serveTCP(7, echo)
	w.serveUDP(7, func(datagram []byte, from net.Addr) []byte { return fmt.Appendf(nil, "%s from %s", datagram, from) })
	port, extra := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp")
	office := newEnd(t, w, "10.77.0.3")
	w.load("127.0.0.1:$1 {\nroute {\nwireguard 10.77.0.2:7\n}\n}\nudp/127.0.0.1:$1 {\nroute {\nwireguard 10.77.0.2:7\n}\n}", port)
	held := w.dial(port)
	mustEcho(t, held, "before")
	talker := newTalker(t, w.dialUDP(port))

	const tunnels = "/config/apps/wireguard/tunnels/"
	const wg0, home = tunnels + "wg0/", tunnels + "wg0/peers/home/"
	servers := "/config/apps/layer4/servers/"
	secret := func(name, text string) string {
		t.Helper()
		path := filepath.Join(w.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return quote("{file." + path + "}")
	}
	server := func(port int, upstream string) string {
		return fmt.Sprintf(`{"listen": ["127.0.0.1:%d"], "routes": [{"handle": [{"handler": "wireguard", "upstreams": [%q]}]}]}`, port, upstream)
	}
	// do asks for a change, which must be made.
	do := func(t *testing.T, method, path, body string) {
		t.Helper()
		if status, answer := w.api(t, method, path, body); status != http.StatusOK {
			t.Fatalf("%s %s: %d %s", method, path, status, answer)
		}
	}
	// homeHas wants a value among what the admin API says of home.
	homeHas := func(t *testing.T, field string, want any) {
		t.Helper()
		if got := w.peer(t, "home")[field]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("home's %s is %v, want %v", field, got, want)
		}
	}
	tunnelHas := func(t *testing.T, field string, want any) {
		t.Helper()
		if got := w.tunnel(t, "wg0")[field]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the tunnel's %s is %v, want %v", field, got, want)
		}
	}
	preshared, rotated := tunnel.NewPresharedKey(), tunnel.NewPresharedKey()
	otherKey := tunnel.NewPrivateKey()

	for _, step := range []struct {
		name string
		do   func(t *testing.T)

		// what else changes than what the step is about
		session, socket bool
	}{
		{name: "keepalive", do: func(t *testing.T) {
			do(t, "PUT", home+"persistent_keepalive", `"30s"`)
			homeHas(t, "persistent_keepalive", 30)
			do(t, "PATCH", home+"persistent_keepalive", `"40s"`)
			homeHas(t, "persistent_keepalive", 40)
			do(t, "DELETE", home+"persistent_keepalive", "")
			homeHas(t, "persistent_keepalive", nil)
		}},
		{name: "preshared key", session: true, do: func(t *testing.T) {
			session := w.peer(t, "home")["latest_handshake"]
			do(t, "PUT", home+"preshared_key", secret("home.psk", preshared.Base64()))
			do(t, "PATCH", home+"preshared_key", secret("rotated.psk", rotated.Base64()))
			mustEcho(t, held, "in the session that is open")
			homeHas(t, "latest_handshake", session)
			w.tell(t, fmt.Sprintf("public_key=%x\nupdate_only=true\npreshared_key=%x\n", w.relay[:], rotated[:]))
			w.shakeHands(t)
		}},
		{name: "endpoint", do: func(t *testing.T) {
			endpoint := w.peer(t, "home")["endpoint"].(string)
			do(t, "PUT", home+"endpoint", quote(endpoint))
			homeHas(t, "endpoint", endpoint)
			_, port, _ := net.SplitHostPort(endpoint)
			do(t, "PATCH", home+"endpoint", quote("localhost:"+port))
			mustEcho(t, held, "to a name")
			do(t, "DELETE", home+"endpoint", "")
			homeHas(t, "endpoint", endpoint)
		}},
		{name: "allowed IPs", do: func(t *testing.T) {
			lost := dialPort(t, w, servers+"six", server(extra, "[fd77::2]:7"), extra)
			do(t, "POST", home+"allowed_ips", `"10.88.0.0/24"`)
			homeHas(t, "allowed_ips", []string{"10.77.0.2/32", "fd77::2/128", "10.88.0.0/24"})
			mustEcho(t, lost, "still there")
			do(t, "DELETE", servers+"six", "")
			mustEcho(t, lost, "its server is gone, and it is not")
			do(t, "PATCH", home+"allowed_ips", `["10.77.0.2/32"]`)
			homeHas(t, "allowed_ips", []string{"10.77.0.2/32"})
			mustReset(t, lost)
			w.mustBeRevoked(t, map[string]any{"upstream": "[fd77::2]:7"})
			do(t, "PATCH", home+"allowed_ips", `["10.77.0.2/32", "fd77::2/128"]`)
		}},
		{name: "another peer", do: func(t *testing.T) {
			do(t, "PUT", wg0+"peers/office", fmt.Sprintf(`{"public_key": %q, "allowed_ips": ["10.77.0.3/32"]}`, office.public))
			office.call(t)
			conn := dialPort(t, w, servers+"office", server(extra, "office:7"), extra)
			// A peer that somebody needs cannot go.
			if status, answer := w.api(t, "DELETE", wg0+"peers/office", ""); status == http.StatusOK || !strings.Contains(answer, "neither a peer's name") {
				t.Errorf("%d %s", status, answer)
			}
			mustEcho(t, conn, "it stays")
			do(t, "DELETE", servers+"office", "")
			do(t, "DELETE", wg0+"peers/office", "")
			mustReset(t, conn)
			w.mustBeRevoked(t, map[string]any{"peer": "office"})
			if w.peer(t, "office") != nil {
				t.Error("the peer is still there")
			}
		}},
		{name: "addresses", do: func(t *testing.T) {
			do(t, "POST", wg0+"address", `"10.99.0.1/24"`)
			tunnelHas(t, "addresses", []string{"10.77.0.1/24", "fd77::1/64", "10.99.0.1/24"})
			do(t, "DELETE", wg0+"address/2", "")
			do(t, "PATCH", wg0+"address/0", `"10.77.0.1/16"`)
			tunnelHas(t, "addresses", []string{"10.77.0.1/16", "fd77::1/64"})
		}},
		{name: "MTU", do: func(t *testing.T) {
			do(t, "PUT", wg0+"mtu", `1400`)
			tunnelHas(t, "mtu", 1400)
			mustEcho(t, held, strings.Repeat("large", 10_000))
			do(t, "PATCH", wg0+"mtu", `1280`)
			tunnelHas(t, "mtu", 1280)
			mustEcho(t, held, strings.Repeat("large", 10_000))
			do(t, "DELETE", wg0+"mtu", "")
		}},
		{name: "port", socket: true, do: func(t *testing.T) {
			former := w.port
			w.port = testnet.FreePort(t, "udp")
			do(t, "PATCH", wg0+"listen_port", fmt.Sprint(w.port))
			tunnelHas(t, "listen_port", w.port)
			// Nobody tells home but the relay itself.
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if _, err := w.inside.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.1:99")); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("home does not reach the relay: %v", err)
			}
			free, err := net.ListenUDP("udp", &net.UDPAddr{Port: former})
			if err != nil {
				t.Fatalf("the former port is not free: %v", err)
			}
			free.Close()
		}},
		{name: "private key", session: true, do: func(t *testing.T) {
			do(t, "PATCH", wg0+"private_key", secret("other.key", otherKey.Base64()))
			public := otherKey.Public()
			tunnelHas(t, "public_key", public)
			w.tell(t, fmt.Sprintf("public_key=%x\nremove=true\n", w.relay[:]))
			w.relay = public
			w.tell(t, fmt.Sprintf("public_key=%x\npreshared_key=%x\nallowed_ip=10.77.0.1/32\nallowed_ip=fd77::1/128\nendpoint=127.0.0.1:%d\npersistent_keepalive_interval=1\n", public[:], rotated[:], w.port))
			mustEcho(t, held, "with the other key")
		}},
		{name: "another tunnel", do: func(t *testing.T) {
			port := testnet.FreePort(t, "udp")
			key := tunnel.NewPrivateKey()
			do(t, "PUT", tunnels+"wg1", fmt.Sprintf(`{"private_key": %s, "address": ["10.77.0.1/24"], "listen_port": %d, "stack": "gvisor", "peers": {"office": {"public_key": %q, "allowed_ips": ["10.77.0.3/32"]}}}`,
				secret("wg1.key", key.Base64()), port, office.public))
			office.relay, office.port = key.Public(), port
			office.call(t)
			conn := dialPort(t, w, servers+"office", server(extra, "office:7"), extra)
			do(t, "DELETE", servers+"office", "")
			do(t, "DELETE", tunnels+"wg1", "")
			mustReset(t, conn)
			w.mustBeRevoked(t, map[string]any{"tunnel": "wg1", "peer": "office"})
			free, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
			if err != nil {
				t.Fatalf("the tunnel's port is not free: %v", err)
			}
			free.Close()
		}},
		{name: "the whole configuration", do: func(t *testing.T) {
			config := document{}
			if err := json.Unmarshal([]byte(w.get(t, "/config/")), &config); err != nil {
				t.Fatal(err)
			}
			config.set(t, "apps/wireguard/tunnels/wg0/peers/home/persistent_keepalive", "21s")
			config.set(t, "apps/wireguard/tunnels/wg0/peers/home/@id", "home")
			body, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			do(t, "POST", "/load", string(body))
			homeHas(t, "persistent_keepalive", 21)
		}},
		{name: "by ID", do: func(t *testing.T) {
			do(t, "PATCH", "/id/home/persistent_keepalive", `"22s"`)
			homeHas(t, "persistent_keepalive", 22)
			do(t, "DELETE", "/id/home/persistent_keepalive", "")
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			_ = held.SetDeadline(time.Now().Add(30 * time.Second))
			session, up, socket := w.peer(t, "home")["latest_handshake"], w.tunnel(t, "wg0")["up_since"], w.outside(t)
			step.do(t)
			mustEcho(t, held, "after "+step.name)
			talker.mustTalk(t, step.name)
			fresh := w.dial(port)
			defer fresh.Close()
			mustEcho(t, fresh, "fresh")
			if now := w.peer(t, "home")["latest_handshake"]; now != session && !step.session {
				t.Errorf("home's session began at %v, and now at %v", session, now)
			}
			if now := w.outside(t); now != socket && !step.socket {
				t.Errorf("the tunnel's sockets were %s, and are %s", socket, now)
			}
			tunnelHas(t, "up_since", up)
		})
	}
	w.noSecrets(t, preshared.Base64(), rotated.Base64(), otherKey.Base64())
}

func quote(text string) string { return fmt.Sprintf("%q", text) }

// mustBeRevoked wants the log to say that a connection was.
func (w *world) mustBeRevoked(t *testing.T, want map[string]any) {
	t.Helper()
	for {
		if line := w.lines.next("relayed connection"); line["reason"] != "client closed" {
			want["reason"] = "revoked"
			has(t, line, want)
			return
		}
	}
}

// dialPort adds a server to the running relay and connects to it.
func dialPort(t *testing.T, w *world, path, server string, port int) *net.TCPConn {
	t.Helper()
	if status, answer := w.api(t, "PUT", path, server); status != http.StatusOK {
		t.Fatalf("PUT %s: %d %s", path, status, answer)
	}
	conn := w.dial(port)
	mustEcho(t, conn, "hello")
	return conn
}

// end is another home of the relay's.
type end struct {
	device *device.Device
	relay  tunnel.PublicKey
	port   int
	key    tunnel.PrivateKey
	public string
}

// newEnd makes another home ready, which echoes what comes to its port 7.
func newEnd(t *testing.T, w *world, address string) *end {
	t.Helper()
	inside, err := gvisor.New(gvisor.Config{
		Name: "office", MTU: 1280, Logger: zap.NewNop(),
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(address), 24)},
	})
	if err != nil {
		t.Fatal(err)
	}
	e := &end{relay: w.relay, port: w.port, key: tunnel.NewPrivateKey()}
	e.public = publicKey(e.key)
	e.device = device.NewDevice(inside.Device(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(e.device.Close)
	(&world{t: t, inside: inside}).serveTCP(7, echo)
	return e
}

// call makes it call the relay.
func (e *end) call(t *testing.T) {
	t.Helper()
	if err := errors.Join(e.device.IpcSet(fmt.Sprintf("private_key=%x\nreplace_peers=true\npublic_key=%x\nallowed_ip=10.77.0.1/32\nendpoint=127.0.0.1:%d\npersistent_keepalive_interval=1\n",
		e.key[:], e.relay[:], e.port)), e.device.Up()); err != nil {
		t.Fatal(err)
	}
}
