package tests

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestRoaming keeps an SSH session open while the line at home changes under
// it. Nobody logs in again: the session goes on by itself.
func TestRoaming(t *testing.T) {
	for _, tt := range []struct {
		name       string
		newAddress bool
	}{
		{"the NAT forgets", false},
		{"home gets another address", true},
	} {
		for _, keepalive := range []int{5, 25} {
			t.Run(fmt.Sprintf("%s, keepalive %d", tt.name, keepalive), func(t *testing.T) {
				t.Parallel() // they mostly wait
				w := newWorld(t)
				w.relay.UseBinary(testnet.FastCaddy(t))
				w.home = testnet.NewHome(t, w.Home, w.keys, testnet.HomeConfig{Keepalive: keepalive})
				server := services.StartSSH(t, w.Home)
				w.start(t, w.ports(t))
				session := openSession(t, w, server)
				if err := session.echo("before"); err != nil {
					t.Fatal(err)
				}
				const rounds = 3
				var took []float64
				for round := range rounds {
					if err := w.Reconnect(tt.newAddress); err != nil {
						t.Fatal(err)
					}
					begin := time.Now()
					if err := session.echo(fmt.Sprint("after ", round)); err != nil {
						t.Fatal(err)
					}
					took = append(took, time.Since(begin).Seconds())
				}
				session.finish(t)
				if logins := server.Logins(); logins != 1 {
					t.Errorf("%d logins, want the one session", logins)
				}
				figure(t, "SSH session, %s, keepalive %d s: bytes flow again after %.1f s (%.1f to %.1f, %d times).",
					tt.name, keepalive, median(took), slices.Min(took), slices.Max(took), rounds)
			})
		}
	}
}
