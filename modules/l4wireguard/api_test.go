package l4wireguard

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func (w *world) adminSocket() string { return w.dir + "/admin.sock" }

// api asks the relay's admin API. It is at a Unix socket, which loses nobody
// when a reload hands it on.
func (w *world) api(t *testing.T, method, path, body string) (status int, answer string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://127.0.0.1"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", w.adminSocket())
			},
		},
		Timeout: 2 * time.Minute,
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// get is what the admin API has at a path.
func (w *world) get(t *testing.T, path string) string {
	t.Helper()
	status, answer := w.api(t, http.MethodGet, path, "")
	if status != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, status, answer)
	}
	return answer
}

// tunnel is what the admin API says of a tunnel.
func (w *world) tunnel(t *testing.T, name string) (tunnel map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(w.get(t, "/wireguard/"+name)), &tunnel); err != nil {
		t.Fatal(err)
	}
	return tunnel
}

// peer is what the admin API says of a peer of wg0, nil if it has none of that
// name.
func (w *world) peer(t *testing.T, name string) map[string]any {
	t.Helper()
	peers, _ := w.tunnel(t, "wg0")["peers"].([]any)
	for _, peer := range peers {
		if peer := peer.(map[string]any); peer["name"] == name {
			return peer
		}
	}
	return nil
}

// outside are wg0's sockets in the host's network, by their inodes.
func (w *world) outside(t *testing.T) string {
	t.Helper()
	at := fmt.Sprintf(":%04X ", w.port)
	return strings.Join(slices.DeleteFunc(listening(), func(socket string) bool { return !strings.Contains(socket, at) }), ", ")
}

// tell configures home's WireGuard.
func (w *world) tell(t *testing.T, uapi string) {
	t.Helper()
	if err := w.home.IpcSet(uapi); err != nil {
		t.Fatal(err)
	}
}

// noSecrets makes sure that none of some keys is where anybody who may ask or
// read can see it.
func (w *world) noSecrets(t *testing.T, keys ...string) {
	t.Helper()
	for _, path := range []string{"/config/", "/wireguard/"} {
		for _, key := range keys {
			if strings.Contains(w.get(t, path), key) {
				t.Errorf("%s has a secret", path)
			}
		}
	}
}

// shakeHands makes home begin another session, with the keys that both ends
// have now.
func (w *world) shakeHands(t *testing.T) {
	t.Helper()
	former := w.peer(t, "home")["latest_handshake"]
	relay := w.home.LookupPeer(device.NoisePublicKey(w.relay))
	relay.ExpireCurrentKeypairs()
	if err := relay.SendHandshakeInitiation(false); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 15*time.Second, func() error {
		if w.peer(t, "home")["latest_handshake"] == former {
			return fmt.Errorf("there is no session since %v", former)
		}
		return nil
	})
}
