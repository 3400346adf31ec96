package tests

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestACMETwoEnds has the relay and home want certificates by DNS-01 at the same time,
// also for the same name, with nothing in common but the one TXT value of their DuckDNS
// domain. None overwrites the other's, but in the very same moment, and then it is put right.
func TestACMETwoEnds(t *testing.T) {
	t.Parallel() // it mostly waits
	internet := testnet.NewInternet(t)
	world := newACMEWorld(t, internet, 90*24*time.Hour)
	// As long as they wait for it.
	world.duckDNS.SetTTL(3)
	testnet.WriteFile(t, filepath.Join("/etc/netns", internet.Home.Name, "resolv.conf"), []byte("nameserver "+nameServerIP+"\n"), 0o644)
	relay, home := testnet.NewRelay(t, internet.Relay), testnet.NewRelay(t, internet.Home)
	relay.UseBinary(testnet.FastCaddy(t))
	home.UseBinary(testnet.FastCaddy(t))
	ends := []struct {
		*testnet.Relay
		from    *testnet.Namespace
		address string
		names   []string
	}{
		{relay, internet.Client, testnet.RelayIP + ":443", []string{testnet.Domain, testnet.Subdomain}},
		{home, internet.Home, "127.0.0.1:443", []string{testnet.Domain, "home." + testnet.Domain}},
	}
	for _, end := range ends {
		defer checkOrders(t, end.Relay)
		end.Start(t, acmeCaddyfile(t, end.Relay, "", end.names))
	}
	roots := world.roots(t)
	for _, end := range ends {
		testnet.Eventually(t, 2*time.Minute, func() error {
			for _, name := range end.names {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				_, err := certificateAt(ctx, end.from, end.address, roots, name)
				cancel()
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			return nil
		})
	}
	log := relay.Log.String() + home.Log.String()
	if !strings.Contains(log, "waiting until another order is done") {
		t.Error("none of them waited")
	}
	collisions := 0
	for _, update := range world.duckDNS.Updates() {
		if collision := update.Collision(); collision != "" {
			collisions++
			t.Log(collision)
		}
	}
	if known := strings.Count(log, "in the same moment") + strings.Count(log, "setting the challenge again"); collisions > known {
		t.Errorf("%d collisions, of which %d were put right", collisions, known)
	}
}
