package tests

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestTwoHomes runs caddyfile-examples/two-homes.Caddyfile in front of two homes
// with the same network, whose routers do the WireGuard with home.fritzbox.conf:
// each name must reach its own.
func TestTwoHomes(t *testing.T) {
	testnet.Need(t, "curl")
	keys, keys2 := testnet.NewTunnelKeys(t), testnet.NewTunnelKeys(t)
	keys.Preshared, keys2.Preshared = testnet.NewPresharedKey(t), testnet.NewPresharedKey(t)
	w := newWorldWith(t, keys)
	w.relay.Secret(t, "wg1.key", keys2.Relay.Private)
	w.relay.Secret(t, "parents.psk", keys2.Preshared)
	w.relay.DropAll(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	router2, home2 := w.AddHome(t)
	w.itself(t, "home", w.Router, w.Home)
	w.itself(t, "parents", router2, home2)

	site := w.public.Issue(t, testnet.Domain, testnet.Subdomain)
	w.relay.Start(t, substitute(t, "caddyfile-examples/two-homes.Caddyfile", w.paths(map[string]string{
		"/etc/caddy/wg1.key":                w.relay.Folder + "/wg1.key",
		"/etc/caddy/home.psk":               w.relay.Folder + "/home.psk",
		"/etc/caddy/parents.psk":            w.relay.Folder + "/parents.psk",
		"SECOND-HOMES-PUBLIC-KEY-GOES-HERE": keys2.Home.Public,
		exampleDNS01:                        "	tls " + site.Cert + " " + site.Key + "\n",
	})))
	unprivileged(t, w.relay)
	w.startFritzBox(t, w.Router, w.keys, testnet.Endpoint+":51820")
	w.startFritzBox(t, router2, keys2, testnet.Endpoint+":51821")

	for _, home := range []struct {
		name, site        string
		ssh, machine, udp string
	}{
		{name: "home", site: testnet.Domain, ssh: "2022", udp: "19132"},
		{name: "parents", site: testnet.Subdomain, ssh: "2023", machine: "2024", udp: "19133"},
	} {
		t.Run(home.name, func(t *testing.T) {
			got := w.curl(t, "http2", "https://"+home.site+"/")
			if want := home.name + " for " + testnet.ClientIP; got.body != want {
				t.Errorf("the site is %d, %q, want %q", got.status, got.body, want)
			}
			if got := w.says(t, home.ssh); got != home.name {
				t.Errorf("port %s is that of %q", home.ssh, got)
			}
			if home.machine != "" {
				if got, want := w.says(t, home.machine), home.name+"'s other machine"; got != want {
					t.Errorf("port %s is that of %q, want %q", home.machine, got, want)
				}
			}
			conn := dialUDPAt(t, w.Client, testnet.RelayIP+":"+home.udp)
			buffer, n, err := make([]byte, 100), 0, error(nil)
			for range 3 { // a datagram may be lost
				conn.Write([]byte("who is there?"))
				conn.SetReadDeadline(time.Now().Add(5 * time.Second))
				if n, err = conn.Read(buffer); err == nil {
					break
				}
			}
			if err != nil || string(buffer[:n]) != home.name {
				t.Errorf("UDP port %s is that of %q (%v)", home.udp, buffer[:n], err)
			}
		})
	}
}

// says is what a service says that only says who it is.
func (w *world) says(t *testing.T, port string) string {
	t.Helper()
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.RelayIP+":"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// itself gives a home services that say whose they are, and its router another
// machine's address and service.
func (w *world) itself(t *testing.T, name string, router, home *testnet.Namespace) {
	t.Helper()
	speak := func(namespace *testnet.Namespace, address, text string) {
		listener := namespace.Listen(t, "tcp", address)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				io.WriteString(conn, text)
				conn.Close()
			}
		}()
	}
	speak(home, ":22", name)
	router.IP(t, "addr add 192.168.178.30/24 dev lan")
	speak(router, "192.168.178.30:22", name+"'s other machine")
	socket := home.ListenPacket(t, "udp", ":19132")
	go func() {
		for buffer := make([]byte, 100); ; {
			_, from, err := socket.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			socket.WriteToUDPAddrPort([]byte(name), from)
		}
	}()
	certificate := w.private.Issue(t, testnet.Domain, testnet.Subdomain).Load(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for %s", name, r.Header.Get("X-Forwarded-For"))
	})}
	go server.Serve(tls.NewListener(home.Listen(t, "tcp", ":443"), &tls.Config{Certificates: []tls.Certificate{certificate}}))
	t.Cleanup(func() { server.Close() })
}

// startFritzBox makes a router do what a FRITZ!Box does with
// caddyfile-examples/home.fritzbox.conf.
func (w *world) startFritzBox(t *testing.T, router *testnet.Namespace, keys testnet.TunnelKeys, endpoint string) {
	t.Helper()
	w.importFritzBox(t, router, substitute(t, "caddyfile-examples/home.fritzbox.conf", map[string]string{
		"HOMES-PRIVATE-KEY-GOES-HERE": keys.Home.Private,
		exampleRelayKey:               keys.Relay.Public,
		"PRESHARED-KEY-GOES-HERE":     keys.Preshared,
		testnet.Endpoint + ":51820":   endpoint,
	}))
}

// importFritzBox makes a router do what a FRITZ!Box does with a file that it imports.
func (w *world) importFritzBox(t *testing.T, router *testnet.Namespace, text string) {
	t.Helper()
	router.SetHosts(t, map[string]string{testnet.Endpoint: testnet.RelayIP})
	values := fritzBox(t, text)
	var keys testnet.TunnelKeys
	keys.Home.Private, keys.Relay.Public, keys.Preshared = values["PrivateKey"], values["PublicKey"], values["PresharedKey"]
	box := testnet.NewHome(t, router, keys, testnet.HomeConfig{
		// The box has this one already, with its prefix, in its own network.
		Addresses:  []string{strings.TrimSuffix(values["Address"], "/24") + "/32"},
		Endpoint:   values["Endpoint"],
		AllowedIPs: []string{values["AllowedIPs"]},
	})
	box.Up(t)
	router.NFT(t, fmt.Sprintf(`add rule inet filter forward iifname %q accept`, box.Interface))
	box.WaitHandshake(t)
}

// fritzBox reads a file as strictly as a FRITZ!Box does, as far as is known.
func fritzBox(t *testing.T, text string) map[string]string {
	t.Helper()
	known := map[string]string{
		"PrivateKey": "[Interface]", "Address": "[Interface]",
		"PublicKey": "[Peer]", "PresharedKey": "[Peer]", "AllowedIPs": "[Peer]", "Endpoint": "[Peer]", "PersistentKeepalive": "[Peer]",
	}
	values := make(map[string]string)
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, " = ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"): // the reader takes them out
		case strings.HasPrefix(line, "["):
			section = line
		case !ok || known[key] != section || values[key] != "":
			t.Fatalf("a FRITZ!Box does not take %q in %s", line, section)
		default:
			values[key] = value
		}
	}
	if values["PresharedKey"] == "" {
		t.Fatal("a FRITZ!Box wants a preshared key")
	}
	if _, _, err := net.ParseCIDR(values["Address"]); err != nil {
		t.Fatalf("a FRITZ!Box takes one address: %v", err)
	}
	if values["AllowedIPs"] != testnet.RelayTunnelIP+"/32" {
		t.Fatalf("a FRITZ!Box may have the relay's address only, not %q", values["AllowedIPs"])
	}
	return values
}
