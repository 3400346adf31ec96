package tests

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestRestart ends a relay and starts it again while home has nothing to say
// but keepalives, which do not make it handshake again for two minutes.
func TestRestart(t *testing.T) {
	for _, home := range []struct {
		name  string
		start func(*testing.T, *world)
	}{
		{"wireguard-go", func(t *testing.T, w *world) {
			w.home.Up(t)
			w.home.WaitHandshake(t)
		}},
		{"our binary", func(t *testing.T, w *world) { startOwnHome(t, w, 25) }},
	} {
		for _, end := range []struct {
			name string
			end  func(*testnet.Relay)
		}{
			{"killed", func(r *testnet.Relay) { r.Kill() }},
			{"stopped", func(r *testnet.Relay) { r.Stop() }},
		} {
			t.Run(home.name+"/"+end.name, func(t *testing.T) {
				w := newWorld(t)
				w.relay.UseBinary(testnet.FastCaddy(t))
				services.Echo(t, w.Home, ":7000", "")
				caddyfile := w.ports(t)
				w.relay.Start(t, caddyfile)
				home.start(t, w)
				echo := func() error {
					conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
					if err != nil {
						return err
					}
					defer conn.Close()
					return echoOnce(conn, "served")
				}
				testnet.Eventually(t, 20*time.Second, echo)
				testnet.Eventually(t, 20*time.Second, func() error {
					if found, _ := filepath.Glob(w.relay.Folder + "/storage/wireguard/*/endpoints.json"); len(found) == 0 {
						return errors.New("home's endpoint is not in the storage")
					}
					return nil
				})
				begin := time.Now()
				end.end(w.relay)
				ended := time.Now()
				w.relay.Start(t, caddyfile)
				serving := time.Now()
				attempts := 0
				testnet.Eventually(t, 20*time.Second, func() error {
					attempts++
					return echo()
				})
				figure(t, "Relay %s and started again, home is %s and idle: connection %d served %v after it was ready, %v after it was started; ending took %v.",
					end.name, home.name, attempts, rounded(time.Since(serving)), rounded(time.Since(ended)), rounded(ended.Sub(begin)))
			})
		}
	}
}

func rounded(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// startOwnHome runs our binary as home's end of the tunnel, without root, in
// place of wireguard-go: what comes to its ports goes to home's services. The
// keepalive is in seconds.
func startOwnHome(t *testing.T, w *world, keepalive int) *testnet.Relay {
	t.Helper()
	own := testnet.NewRelay(t, w.Home)
	own.UseBinary(testnet.FastCaddy(t))
	key := own.Secret(t, "wg0.key", w.keys.Home.Private)
	own.Start(t, fmt.Sprintf(`{
	storage file_system %s/storage
	wireguard wg0 {
		private_key {file.%s}
		address %s/24
		peer relay {
			public_key %s
			allowed_ips %s/32
			endpoint %s:51820
			persistent_keepalive %ds
		}
	}
	layer4 {
		wireguard/wg0:22 {
			route {
				proxy 127.0.0.1:22
			}
		}
		wireguard/wg0:7000 {
			route {
				proxy 127.0.0.1:7000
			}
		}
	}
}
`, own.Folder, key, testnet.HomeTunnelIP, w.keys.Relay.Public, testnet.RelayTunnelIP, testnet.Endpoint, keepalive))
	return own
}
