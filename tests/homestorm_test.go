package tests

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestOwnHomeReloadStorm reloads both ends every 200 ms while 50 new connections a
// second go through the listeners of both: none may be refused or reset. It takes
// 5 seconds, with HOMEWARD_LAB=1 it is 30.
func TestOwnHomeReloadStorm(t *testing.T) {
	lasts := 5 * time.Second
	if os.Getenv("HOMEWARD_LAB") != "" {
		lasts = 30 * time.Second
	}
	const (
		reloadEvery  = 200 * time.Millisecond
		connectEvery = 20 * time.Millisecond
	)
	w := newWorld(t)
	services.Echo(t, w.Home, "127.0.0.1:22", "127.0.0.1:19132")
	whoIsThere(t, w.Home, "127.0.0.1:8080")
	own := newOwnHome(t, w)
	for _, end := range []*testnet.Relay{w.relay, own} {
		end.UseBinary(testnet.FastCaddy(t))
	}
	// What homeward.service says, where public ports are opened anew. Those inside
	// the tunnel do not need it.
	w.Relay.Sysctl(t, "net.ipv4.tcp_migrate_req", "1")
	relayText := replace(t, w.example(t), "		:2022 {", `		udp/:19132 {
			route {
				wireguard home:19132
			}
		}
		:2022 {`)
	homeText := replace(t, w.ownExample(t, own, "home.Caddyfile", w.private, nil), "		wireguard/wg0:22 {", `		wireguard+udp/wg0:19132 {
			route {
				wireguard 127.0.0.1:19132 {
					direct
				}
			}
		}
		wireguard/wg0:22 {`)
	w.relay.Start(t, relayText)
	own.Start(t, homeText)

	transport := w.Client.HTTPTransport(t)
	transport.TLSClientConfig = &tls.Config{RootCAs: w.public.Pool()}
	transport.DisableKeepAlives = true
	site := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	visit := func() error {
		response, err := site.Get("https://" + testnet.Domain + "/")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if want := testnet.Domain + " for " + testnet.ClientIP; err == nil && !strings.HasPrefix(string(body), want) {
			err = fmt.Errorf("got %s, %q", response.Status, body)
		}
		return err
	}
	echo := func() error { return echoAt(w.Client, testnet.RelayIP+":2022") }
	testnet.Eventually(t, 20*time.Second, visit)
	stays, err := w.Client.Dial(t.Context(), "tcp", testnet.RelayIP+":2022")
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	udp := w.dialUDP(t)
	if err := udp.echo("before"); err != nil {
		t.Fatal(err)
	}
	before, ourBefore := settle(t, w.relay), ourGoroutines(t, own)

	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var working, connections sync.WaitGroup
	var reloads, served, failed atomic.Int64
	for end, text := range map[*testnet.Relay]string{w.relay: relayText, own: homeText} {
		working.Go(func() {
			for n := range every(ctx, reloadEvery) {
				// Something is another each time, or nothing would be reloaded.
				if err := end.Load(t, text+fmt.Sprintf("\nhttp://127.0.0.1:%d {\n	respond hello\n}\n", 8100+n%2)); err != nil {
					t.Errorf("reload %d: %v", n, err)
					return
				}
				reloads.Add(1)
			}
		})
	}
	working.Go(func() {
		for n := range every(ctx, connectEvery) {
			connections.Go(func() {
				try := echo
				if n%5 == 0 {
					try = visit
				}
				if err := try(); err != nil {
					if failed.Add(1) <= 5 {
						t.Errorf("connection %d: %v", n, err)
					}
					return
				}
				served.Add(1)
			})
		}
	})
	working.Go(func() {
		for n := range every(ctx, 10*connectEvery) {
			if err := udp.echo(fmt.Sprint("datagram ", n)); err != nil {
				t.Errorf("datagram %d: %v", n, err)
				return
			}
		}
	})
	working.Wait()
	connections.Wait()
	if err := echoOnce(stays.(*net.TCPConn), "still here"); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
	if served.Load() == 0 || reloads.Load() < 4 {
		t.Errorf("%d connections and %d reloads prove nothing", served.Load(), reloads.Load())
	}
	before.expectAgain(t, w.relay)
	// Of home only what is ours: Caddy's own clients keep connections to programs
	// for two minutes.
	testnet.Eventually(t, 20*time.Second, func() error {
		if now := ourGoroutines(t, own); now > ourBefore {
			return fmt.Errorf("home has %d goroutines of ours, before %d", now, ourBefore)
		}
		return nil
	})
	figure(t, "%d reloads of both ends in %.0f s, and %d new connections through both meanwhile, a fifth of them HTTPS: %d refused or reset.",
		reloads.Load(), lasts.Seconds(), served.Load()+failed.Load(), failed.Load())
}

// ourGoroutines counts those that run code of this project.
func ourGoroutines(t *testing.T, end *testnet.Relay) (count int) {
	t.Helper()
	_, profile := end.Goroutines(t)
	_, profile, _ = strings.Cut(profile, "\n") // the total
	for _, stack := range strings.Split(profile, "\n\n") {
		if strings.Contains(stack, "/homeward/modules/") {
			var same int
			if _, err := fmt.Sscanf(stack, "%d @", &same); err != nil {
				t.Fatalf("reading the goroutine profile: %v in %q", err, stack)
			}
			count += same
		}
	}
	return count
}

// every counts at an interval until ctx is done. What comes too late is left out.
func every(ctx context.Context, interval time.Duration) func(func(int) bool) {
	return func(yield func(int) bool) {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if !yield(n) {
					return
				}
			}
		}
	}
}
