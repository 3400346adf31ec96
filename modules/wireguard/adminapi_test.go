package wireguard

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// withAdmin is a configuration whose admin API listens at address.
func withAdmin(t *testing.T, config []byte, address string) []byte {
	t.Helper()
	const disabled = `"admin": {"disabled": true,`
	if !strings.Contains(string(config), disabled) {
		t.Fatalf("the configuration has no %s", disabled)
	}
	return []byte(strings.Replace(string(config), disabled, fmt.Sprintf(`"admin": {"listen": %q,`, address), 1))
}

func freeAdminAddress(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", testnet.FreePort(t, "tcp"))
}

// noSecrets makes sure that none of the keys is in a text, in the forms that
// they have in configurations and in UAPI.
func (o *other) noSecrets(t *testing.T, text string) {
	t.Helper()
	for name, secret := range map[string][]byte{"private key": o.relayKey[:], "preshared key": o.preshared[:]} {
		for _, form := range []string{base64.StdEncoding.EncodeToString(secret), hex.EncodeToString(secret), fmt.Sprint(secret)} {
			if strings.Contains(text, form) {
				t.Errorf("the %s is in %q", name, text)
			}
		}
	}
}

// ask asks the admin API at address and returns the answer, which must have
// the wanted status and no secret.
func (o *other) ask(t *testing.T, method, address, path string, status int) (body string, header http.Header) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	var response *http.Response
	// A reload closes the former admin listener with whoever waits in it.
	testnet.Eventually(t, patience, func() error {
		response, err = client.Do(request)
		return err
	})
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != status {
		t.Errorf("%s %s: %s, want %d: %s", method, path, response.Status, status, text)
	}
	o.noSecrets(t, string(text))
	return string(text), response.Header
}

// exchange fetches a page through the tunnel, so that there is something to
// tell.
func (o *other) exchange(t *testing.T) {
	t.Helper()
	conn, err := o.dial(t, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := get(conn); err != nil {
		t.Fatal(err)
	}
}

func TestAdminAPI(t *testing.T) {
	o := newOther(t)
	address := freeAdminAddress(t)
	begin := time.Now()
	load(t, withAdmin(t, o.config(site("hello")), address))
	o.exchange(t)

	text, header := o.ask(t, "GET", address, "/wireguard/", http.StatusOK)
	if got := header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	var all []tunnelInfo
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	text, _ = o.ask(t, "GET", address, "/wireguard/wg0", http.StatusOK)
	var one tunnelInfo
	if err := json.Unmarshal([]byte(text), &one); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if len(all) != 1 || all[0].Name != one.Name || all[0].PublicKey != one.PublicKey {
		t.Errorf("all are %+v, wg0 is %+v", all, one)
	}

	within := func(when time.Time) bool { return !when.Before(begin) && !when.After(time.Now()) }
	switch {
	case one.Name != "wg0" || !one.Up || !within(one.UpSince),
		one.PublicKey != o.relayKey.Public().String(),
		!slices.Equal(one.Addresses, []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24")}),
		one.ListenPort != o.listen,
		one.MTU < 1280,
		one.Stack != "kernel" && one.Stack != "gvisor",
		one.StackReason == "",
		one.Stack == "gvisor" && one.CongestionControl != "",
		len(one.Peers) != 1:
		t.Fatalf("got %s", text)
	}
	peer := one.Peers[0]
	switch {
	case peer.Name != "home" || peer.PublicKey != o.publicKey.String(),
		!peer.Endpoint.Addr().IsLoopback(),
		!slices.Equal(peer.AllowedIPs, []netip.Prefix{netip.MustParsePrefix("10.77.0.2/32")}),
		!within(peer.LatestHandshake) || !within(peer.LastReceived),
		peer.BytesReceived == 0 || peer.BytesSent == 0,
		peer.PersistentKeepalive != 0:
		t.Errorf("got %s", text)
	}
}

func TestAdminAPIRefusals(t *testing.T) {
	o := newOther(t)
	address := freeAdminAddress(t)
	load(t, withAdmin(t, o.config(""), address))
	for _, test := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"GET", "/wireguard/wg7", http.StatusNotFound, `there is no tunnel \"wg7\"; the running configuration has wg0`},
		{"GET", "/wireguard/wg0/", http.StatusNotFound, `there is no tunnel \"wg0/\"`},
		{"GET", "/wireguard/wg0/private_key", http.StatusNotFound, "there is no tunnel"},
		{"POST", "/wireguard/", http.StatusMethodNotAllowed, "method POST is not allowed"},
		{"DELETE", "/wireguard/wg0", http.StatusMethodNotAllowed, "method DELETE is not allowed"},
	} {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			text, header := o.ask(t, test.method, address, test.path, test.status)
			if !strings.Contains(text, test.want) {
				t.Errorf("got %s, want %s", text, test.want)
			}
			if test.status == http.StatusMethodNotAllowed && header.Get("Allow") != "GET" {
				t.Errorf("it does not say what is allowed: %v", header)
			}
		})
	}
}

// TestAdminAPIFollowsReloads asks whoever answers at the admin address, which
// after a failed load is an endpoint of a configuration that is not in force.
func TestAdminAPIFollowsReloads(t *testing.T) {
	o := newOther(t)
	address := freeAdminAddress(t)
	names := func() (names []string) {
		t.Helper()
		text, _ := o.ask(t, "GET", address, "/wireguard/", http.StatusOK)
		var tunnels []tunnelInfo
		if err := json.Unmarshal([]byte(text), &tunnels); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		for _, tunnel := range tunnels {
			if !tunnel.Up {
				t.Errorf("%s is down: %s", tunnel.Name, text)
			}
			names = append(names, tunnel.Name)
		}
		return names
	}
	one := withAdmin(t, o.config(site("one")), address)
	second := fmt.Sprintf(`"tunnels": {"second": {
		"private_key": "{file.%s/wg0.key}", "address": ["10.78.0.1/24"], "listen_port": %d, "stack": "gvisor"
	}, `, o.dir, testnet.FreePort(t, "udp"))
	two := []byte(strings.Replace(string(one), `"tunnels": {`, second, 1))

	load(t, one)
	if got := names(); !slices.Equal(got, []string{"wg0"}) {
		t.Errorf("at first: %q", got)
	}
	broken := strings.Replace(string(two), "wireguard/wg0:80", "wireguard/wg0:80\", \"unix//no/such/folder/socket", 1)
	if err := caddy.Load([]byte(broken), true); err == nil {
		t.Fatal("a listener in a folder that is not there was accepted")
	}
	if got := names(); !slices.Equal(got, []string{"wg0"}) {
		t.Errorf("after a failed load: %q", got)
	}
	if err := caddy.Load(two, true); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"second", "wg0"}) {
		t.Errorf("after a reload that adds one: %q", got)
	}
	if err := caddy.Load(one, true); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"wg0"}) {
		t.Errorf("after a reload that takes it away: %q", got)
	}
}

// TestAdminAPIOfADownTunnel asks between Provision and Start, when tunnels
// are claimed and not yet up.
func TestAdminAPIOfADownTunnel(t *testing.T) {
	o := newOther(t)
	address := freeAdminAddress(t)
	load(t, withAdmin(t, o.config(""), address))
	value, _, err := pool.LoadOrNew("down", func() (caddy.Destructor, error) { return tunnel.New("down"), nil })
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Delete("down")
	defer value.(*tunnel.Tunnel).Claim(&tunnel.Config{PrivateKey: o.relayKey}, zap.NewNop()).Release()
	text, _ := o.ask(t, "GET", address, "/wireguard/down", http.StatusOK)
	if want := `{"name":"down","up":false}`; strings.TrimSpace(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
}

// What the admin API and the file system have of a configuration with its keys in
// it is Caddy's own affair. The log says so, without them.
func TestInlineSecretsAreWarnedOf(t *testing.T) {
	private, preshared := tunnel.NewPrivateKey(), tunnel.NewPresharedKey()
	public := tunnel.NewPrivateKey().Public()
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if err := os.WriteFile(path, []byte(private.Base64()), 0o600); err != nil {
		t.Fatal(err)
	}
	config := func(private, preshared string) []byte {
		return fmt.Appendf(nil, `{
			"admin": {"disabled": true, "config": {"persist": false}},
			"logging": {"logs": {"default": {"writer": {"output": "file", "filename": %q}}}},
			"storage": {"module": "file_system", "root": %q},
			"apps": {"wireguard": {"tunnels": {"wg0": {
				"private_key": %q, "address": ["10.77.0.1/24"], "listen_port": %d, "stack": "gvisor",
				"peers": {"home": {"public_key": %q, "preshared_key": %q, "allowed_ips": ["10.77.0.2/32"]}}
			}}}}
		}`, filepath.Join(dir, "log"), dir, private, testnet.FreePort(t, "udp"), public, preshared)
	}
	logged := func() string {
		log, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		return string(log)
	}
	const warning = "secrets are in the configuration itself"
	load(t, config("{file."+path+"}", "{file."+path+"}"))
	if log := logged(); strings.Contains(log, warning) {
		t.Errorf("the log warns of keys that are in files: %s", log)
	}
	load(t, config(private.Base64(), preshared.Base64()))
	log := logged()
	if want := `"options":["private_key","peer home preshared_key"]`; !strings.Contains(log, warning) || !strings.Contains(log, want) {
		t.Errorf("the log does not warn of %s: %s", want, log)
	}
	for _, key := range []string{private.Base64(), preshared.Base64()} {
		if strings.Contains(log, key) {
			t.Errorf("a key is in %s", log)
		}
	}
}
