package tests

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestConfigAPI changes a running relay with curl, at Caddy's admin API, while a
// connection, a flow and home's WireGuard go on.
func TestConfigAPI(t *testing.T) {
	testnet.Need(t, "curl")
	keys := testnet.NewTunnelKeys(t)
	keys.Preshared = testnet.NewPresharedKey(t)
	w := newWorldWith(t, keys)
	w.relay.UseBinary(testnet.FastCaddy(t))
	services.Echo(t, w.Home, ":7000", ":19132")
	w.Relay.Sysctl(t, "net.ipv4.tcp_migrate_req", "1") // see TestReload
	w.start(t, replace(t, w.ports(t), "public_key "+keys.Home.Public, "public_key "+keys.Home.Public+"\n			preshared_key {file."+w.relay.Folder+"/home.psk}"))

	held, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	lines, flow := bufio.NewReader(held), w.dialUDP(t)
	use := func(when string) {
		t.Helper()
		if err := echoLine(held, lines, when); err != nil {
			t.Fatalf("the connection, %s: %v", when, err)
		}
		if err := flow.echo(when); err != nil {
			t.Fatalf("the flow, %s: %v", when, err)
		}
	}
	use("before")

	// curl returns the answer's body and status.
	curl := func(method, path, body string) (answer, status string) {
		t.Helper()
		args := []string{"-sS", "-w", "\n%{http_code}", "-X", method, "http://localhost:2019" + path}
		if body != "" {
			args = append(args, "-H", "Content-Type: application/json", "--data-binary", "@-")
		}
		cmd := w.Relay.Command("curl", args...)
		cmd.Stdin = strings.NewReader(body)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("curl %s %s: %v\n%s", method, path, err, out)
		}
		end := strings.LastIndexByte(string(out), '\n')
		return string(out)[:end], string(out)[end+1:]
	}
	change := func(method, path, body string) (took time.Duration) {
		t.Helper()
		begin := time.Now()
		if answer, status := curl(method, path, body); status != "200" {
			t.Fatalf("curl -X %s %s: %s %s", method, path, status, answer)
		}
		took = time.Since(begin)
		use("after " + method + " " + path)
		return took
	}
	const tunnels = "/config/apps/wireguard/tunnels/"
	const wg0, home = tunnels + "wg0/", tunnels + "wg0/peers/home/"

	begin, session := time.Now(), w.home.Output(t, "wg", "show", w.home.Interface, "latest-handshakes")
	change("PUT", home+"persistent_keepalive", `"30s"`)
	change("PATCH", home+"allowed_ips", `["10.77.0.2/32", "192.168.178.0/24"]`)
	change("PATCH", wg0+"mtu", `1400`)
	change("POST", wg0+"address", `"10.99.0.1/24"`)
	change("DELETE", wg0+"address/1", "")
	change("PUT", wg0+"peers/office", fmt.Sprintf(`{"public_key": %q, "allowed_ips": ["10.77.0.3/32"]}`, testnet.NewKey(t).Public))
	change("DELETE", wg0+"peers/office", "")
	change("PUT", "/config/apps/layer4/servers/more", `{"listen": [":7100"], "routes": [{"handle": [{"handler": "wireguard", "upstreams": ["home:7000"]}]}]}`)
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7100")
	if err != nil {
		t.Fatalf("the new service: %v", err)
	}
	if err := echoOnce(conn, "new service"); err != nil {
		t.Errorf("the new service: %v", err)
	}
	conn.Close()
	change("DELETE", "/config/apps/layer4/servers/more", "")
	if conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7100"); err == nil {
		conn.Close()
		t.Error("the service that was deleted still answers")
	}
	// A session is renewed after two minutes in any case.
	if now := w.home.Output(t, "wg", "show", w.home.Interface, "latest-handshakes"); now != session && time.Since(begin) < 100*time.Second {
		t.Errorf("home has another session: %s, and had %s", now, session)
	}

	if answer, status := curl("PATCH", wg0+"listen_port", `51821`); status != "200" {
		t.Fatalf("%s %s", status, answer)
	}
	// Home's NAT lets nothing in from a port that home has not called. A keepalive
	// that is turned on leaves at once.
	for _, setting := range [][]string{{"endpoint", testnet.RelayIP + ":51821"}, {"persistent-keepalive", "0"}, {"persistent-keepalive", "25"}} {
		w.home.Output(t, "wg", append([]string{"set", w.home.Interface, "peer", keys.Relay.Public}, setting...)...)
	}
	use("at the other port")
	rotated := testnet.NewPresharedKey(t)
	change("PATCH", home+"preshared_key", fmt.Sprintf("%q", "{file."+w.relay.Secret(t, "rotated.psk", rotated)+"}"))
	w.home.SetPreshared(t, rotated)

	for _, mistake := range []struct{ method, path, body, want string }{
		{"PATCH", wg0 + "private_key", `"{file./none.key}"`, "the file /none.key does not exist"},
		{"PATCH", wg0 + "private_key", fmt.Sprintf("%q", keys.Relay.Private+"x"), "not a WireGuard key"},
		{"PATCH", home + "persistent_keepalive", `25`, "such as 25s"},
		{"PATCH", wg0 + "listen_port", `53`, "listening on UDP port 53"},
		{"DELETE", wg0 + "peers/home", "", "neither a peer's name"},
		{"PUT", "/config/apps/layer4/servers/more", `{"listen": ["192.0.2.99:7000"]}`, "cannot assign requested address"},
		{"PUT", "/config/admin/remote", `{}`, "remote admin"},
	} {
		if mistake.path == wg0+"listen_port" {
			defer w.Relay.ListenPacket(t, "udp", ":53").Close()
		}
		answer, status := curl(mistake.method, mistake.path, mistake.body)
		if status == "200" || !strings.Contains(answer, mistake.want) {
			t.Errorf("%s %s %s: %s %s, want an error with %q", mistake.method, mistake.path, mistake.body, status, answer, mistake.want)
		}
		if strings.Contains(answer, keys.Relay.Private) {
			t.Errorf("%s %s answers with a secret: %s", mistake.method, mistake.path, answer)
		}
		use("after a mistake with " + mistake.path)
	}

	// A thousand more homes.
	peers := make(map[string]any)
	for i := range 1000 {
		peers[fmt.Sprint("home-", i)] = map[string]any{
			"public_key":           testnet.NewKey(t).Public,
			"allowed_ips":          []string{fmt.Sprintf("10.78.%d.%d/32", i/250, i%250+1)},
			"endpoint":             fmt.Sprintf("%s:%d", testnet.ClientIP, 20_000+i),
			"persistent_keepalive": "25s",
		}
	}
	many, err := json.Marshal(map[string]any{
		"private_key": "{file." + w.relay.Folder + "/wg0.key}", "address": []string{"10.78.0.1/16"}, "listen_port": 51822, "peers": peers,
	})
	if err != nil {
		t.Fatal(err)
	}
	before := w.relay.RSS(t)
	added := change("PUT", tunnels+"many", string(many))
	changed := change("PATCH", tunnels+"many/peers/home-500/persistent_keepalive", `"26s"`)
	figure(t, "1,000 peers that are away: %d ms to add their tunnel while it runs, %d ms to change one of them, %d MiB of memory",
		added.Milliseconds(), changed.Milliseconds(), (w.relay.RSS(t)-before)>>20)
	change("DELETE", tunnels+"many", "")

	// Another home in its place.
	if answer, status := curl("PATCH", home+"public_key", fmt.Sprintf("%q", testnet.NewKey(t).Public)); status != "200" {
		t.Fatalf("%s %s", status, answer)
	}
	held.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := held.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection to a home that is no peer any more: %v, want a reset", err)
	}
	testnet.Eventually(t, 20*time.Second, func() error {
		if log := w.relay.Log.String(); !strings.Contains(log, `"reason":"revoked"`) && !strings.Contains(log, `"reason": "revoked"`) {
			return fmt.Errorf("no line says that a connection was revoked:\n%s", w.relay.Log.Tail(20))
		}
		return nil
	})

	// No secret is where somebody else may look; the log is looked at at the end.
	everything, _ := curl("GET", "/config/", "")
	shown, _ := curl("GET", "/wireguard/", "")
	seen := map[string]string{"/config/": everything, "/wireguard/": shown}
	err = filepath.WalkDir(w.relay.Folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "autosave.json" {
			var content []byte
			content, err = os.ReadFile(path)
			seen[path] = string(content)
		}
		return err
	})
	if err != nil || len(seen) != 3 {
		t.Errorf("looking for Caddy's own copy of the configuration: %v", err)
	}
	for where, text := range seen {
		for _, secret := range []string{keys.Relay.Private, keys.Preshared, rotated} {
			if strings.Contains(text, secret) || strings.Contains(text, testnet.Hex(t, secret)) {
				t.Errorf("%s has a secret", where)
			}
		}
	}
}
