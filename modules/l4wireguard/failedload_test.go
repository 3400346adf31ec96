package l4wireguard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() {
	caddy.RegisterModule(new(failingApp))
	caddy.RegisterModule(new(failingLoader))
}

// failingApp is an app that fails to start once the tunnel has been prepared,
// and layer4, if that comes before it, has been serving for a while.
type failingApp struct{ ctx caddy.Context }

var errFailing = errors.New("the failing app has failed")

func (*failingApp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "failing", New: func() caddy.Module { return new(failingApp) }}
}

func (a *failingApp) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	return nil
}

func (a *failingApp) Start() error {
	// Whoever listens inside a tunnel brings it up, if the app has not yet.
	inside, err := caddy.ParseNetworkAddress("wireguard/wg0:99")
	if err != nil {
		return err
	}
	listener, err := inside.Listen(a.ctx, 0, net.ListenConfig{})
	if err != nil {
		return err
	}
	// Clients are to come to the servers that have been started before this.
	time.Sleep(100 * time.Millisecond)
	return errors.Join(errFailing, listener.(net.Listener).Close())
}

func (*failingApp) Stop() error { return nil }

// failingLoader has no configuration to load, which Caddy finds out when all
// apps have been started.
type failingLoader struct{}

func (*failingLoader) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.config_loaders.failing", New: func() caddy.Module { return new(failingLoader) }}
}

func (*failingLoader) LoadConfig(caddy.Context) ([]byte, error) {
	// Clients are to come to the servers, all of which have been started.
	time.Sleep(100 * time.Millisecond)
	return nil, errFailing
}

// document is a configuration as JSON, to change by path as the admin API does.
type document map[string]any

// set puts a value at a path, whose folders must be there. nil removes it.
func (d document) set(t *testing.T, path string, value any) {
	t.Helper()
	parts := strings.Split(path, "/")
	at := map[string]any(d)
	for _, part := range parts[:len(parts)-1] {
		next, ok := at[part].(map[string]any)
		if !ok {
			t.Fatalf("the configuration has no %s on the way to %s", part, path)
		}
		at = next
	}
	if last := parts[len(parts)-1]; value != nil {
		at[last] = value
	} else {
		delete(at, last)
	}
}

// TestFailedLoadChangesNothing loads configurations that change all that can be
// changed, and fail at every point where a load can fail.
func TestFailedLoadChangesNothing(t *testing.T) {
	busy, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	failures := []struct {
		name   string
		rounds int // more than one where it matters in which order apps and servers start
		fail   func(document)
		want   string
	}{
		{"in Provision, ours", 1, func(d document) {
			d.set(t, "apps/wireguard/tunnels/wg0/peers/bad", map[string]any{"public_key": "none"})
		}, "not a WireGuard key"},
		{"in Provision, another app's", 1, func(d document) { d.set(t, "apps/none", map[string]any{}) }, "unknown module"},
		{"in Start, ours", 2, func(d document) {
			d.set(t, "apps/wireguard/tunnels/wg0/listen_port", busy.LocalAddr().(*net.UDPAddr).Port)
		}, "another program has this port"},
		{"in Start, layer4's", 3, func(d document) {
			d.set(t, "apps/layer4/servers/broken", map[string]any{"listen": []string{"192.0.2.99:1"}})
		}, "cannot assign requested address"},
		{"in Start, another app's", 3, func(d document) { d.set(t, "apps/failing", map[string]any{}) }, errFailing.Error()},
		{"after Start, the remote administration", 1, func(d document) { d.set(t, "admin/remote", map[string]any{}) }, "remote admin"},
		{"after Start, the configuration loader", 1, func(d document) {
			d.set(t, "admin/config/load", map[string]any{"module": "failing"})
		}, errFailing.Error()},
	}

	w := newWorld(t)
	w.admin = true
	w.allowed = "10.77.0.0/24 fd77::2/128"
	w.serveTCP(7, echo)
	w.serveUDP(7, func(datagram []byte, from net.Addr) []byte { return fmt.Appendf(nil, "%s from %s", datagram, from) })
	port := testnet.FreePort(t, "tcp")
	w.load("127.0.0.1:$1 {\nroute {\nwireguard 10.77.0.2:7\n}\n}\nudp/127.0.0.1:$1 {\nroute {\nwireguard 10.77.0.2:7\n}\n}", port)
	conn := w.dial(port)
	mustEcho(t, conn, "before")
	var talkers []*talker
	for range 8 {
		talkers = append(talkers, newTalker(t, w.dialUDP(port)))
	}

	changes := []struct {
		name   string
		change func(document)
	}{
		{"another tunnel in its place", func(d document) {
			other := tunnel.NewPrivateKey()
			if err := os.WriteFile(w.dir+"/other.key", []byte(other.Base64()), 0o600); err != nil {
				t.Fatal(err)
			}
			d.set(t, "apps/wireguard/tunnels/wg0", map[string]any{
				"private_key": "{file." + w.dir + "/other.key}",
				"address":     []string{"10.77.0.2/24", "10.99.0.1/24"},
				"listen_port": testnet.FreePort(t, "udp"),
				"mtu":         1400,
				"peers": map[string]any{
					// What home has, and more precisely.
					"office": map[string]any{"public_key": publicKey(tunnel.NewPrivateKey()), "allowed_ips": []string{"10.77.0.2/32"}},
				},
			})
		}},
		{"other settings of the peer", func(d document) {
			psk := tunnel.NewPresharedKey()
			if err := os.WriteFile(w.dir+"/home.psk", []byte(psk.Base64()), 0o600); err != nil {
				t.Fatal(err)
			}
			home := "apps/wireguard/tunnels/wg0/peers/home/"
			d.set(t, home+"preshared_key", "{file."+w.dir+"/home.psk}")
			d.set(t, home+"persistent_keepalive", "7s")
			d.set(t, home+"endpoint", "127.0.0.1:9")
			d.set(t, home+"allowed_ips", []string{"10.77.0.2/32"})
			d.set(t, "apps/layer4/servers/more", map[string]any{"listen": []string{fmt.Sprint("127.0.0.1:", testnet.FreePort(t, "tcp"))}})
			d.set(t, "apps/wireguard/tunnels/wg1", map[string]any{
				"private_key": "{file." + w.dir + "/wg0.key}",
				"address":     []string{"10.78.0.1/24"},
				"stack":       "gvisor", // the kernel's takes its time to go
				"listen_port": testnet.FreePort(t, "udp"),
			})
		}},
	}

	fail := func(t *testing.T, change, fail func(document), want string) {
		t.Helper()
		config := document{}
		if err := json.Unmarshal([]byte(w.get(t, "/config/")), &config); err != nil {
			t.Fatal(err)
		}
		change(config)
		fail(config)
		body, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		status, answer := func() (int, string) {
			for _, talker := range talkers {
				talker.begin()
				defer talker.end()
			}
			return w.api(t, http.MethodPost, "/load", string(body))
		}()
		if status == http.StatusOK || !strings.Contains(answer, want) {
			t.Fatalf("%d %s, want an error with %q", status, answer, want)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		mustEcho(t, conn, "still")
		for _, talker := range talkers {
			talker.mustTalk(t, "still")
		}
		fresh := w.dial(port)
		mustEcho(t, fresh, "fresh")
		fresh.Close()
	}

	testnet.Eventually(t, 20*time.Second, func() error {
		if w.peer(t, "home")["path_mtu"] == nil {
			return errors.New("the path is not measured yet")
		}
		return nil
	})
	// Some of what Caddy has, it has from the first load on.
	fail(t, func(document) {}, failures[0].fail, failures[0].want)
	var before sight
	t.Run("before", func(t *testing.T) { before = w.look(t) })
	for _, failure := range failures {
		for _, change := range changes {
			t.Run(failure.name+", "+change.name, func(t *testing.T) {
				for range failure.rounds {
					fail(t, change.change, failure.fail, failure.want)
				}
				before.expectAgain(t, w)
			})
		}
	}
	// The keys are what they were: home begins another session with them.
	w.shakeHands(t)
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	mustEcho(t, conn, "at the end")
}

// talker is a UDP client that knows which address it has at home.
type talker struct {
	conn   *net.UDPConn
	source string
	stop   chan struct{}
	done   sync.WaitGroup
}

func newTalker(t *testing.T, conn *net.UDPConn) *talker {
	t.Helper()
	k := &talker{conn: conn}
	k.mustTalk(t, "hello")
	return k
}

// mustTalk wants an answer from home, at which the client must be who it was.
func (k *talker) mustTalk(t *testing.T, text string) {
	t.Helper()
	buf := make([]byte, 1<<10)
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); {
		_, _ = io.WriteString(k.conn, text)
		_ = k.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		for {
			n, err := k.conn.Read(buf)
			if err != nil {
				break
			}
			said, source, _ := strings.Cut(string(buf[:n]), " from ")
			if k.source == "" {
				k.source = source
			}
			if source != k.source {
				t.Fatalf("the client at %s is another one at home now: %s and no longer %s", k.conn.LocalAddr(), source, k.source)
			}
			if said == text {
				return
			}
		}
	}
	t.Fatalf("the client at %s gets no answer to %q", k.conn.LocalAddr(), text)
}

// begin makes the client talk all the time, to nobody's answer.
func (k *talker) begin() {
	k.stop = make(chan struct{})
	k.done.Go(func() {
		for {
			select {
			case <-k.stop:
				return
			case <-time.After(2 * time.Millisecond):
				_, _ = io.WriteString(k.conn, "noise")
			}
		}
	})
}

func (k *talker) end() {
	close(k.stop)
	k.done.Wait()
}

// sight is what can be seen of a relay that a failed load must not change.
type sight struct {
	tunnels    any
	listening  []string
	goroutines int

	// sockets and others are descriptors. A tunnel keeps sockets in stock, so
	// that their number varies.
	sockets, others int
}

// stock is more sockets than two tunnels keep in stock.
const stock = 200

// look looks until two looks in a row see the same.
func (w *world) look(t *testing.T) sight {
	t.Helper()
	last := w.see(t)
	testnet.Eventually(t, 15*time.Second, func() error {
		time.Sleep(100 * time.Millisecond)
		former := last
		if last = w.see(t); !reflect.DeepEqual(last, former) {
			return fmt.Errorf("it is now %+v, and was %+v", last, former)
		}
		return nil
	})
	return last
}

func (w *world) see(t *testing.T) sight {
	t.Helper()
	var tunnels []map[string]any
	if err := json.Unmarshal([]byte(w.get(t, "/wireguard/")), &tunnels); err != nil {
		t.Fatal(err)
	}
	for _, tunnel := range tunnels {
		for _, peer := range tunnel["peers"].([]any) {
			for _, counter := range []string{"last_received", "bytes_received", "bytes_sent", "latest_handshake"} {
				delete(peer.(map[string]any), counter)
			}
		}
	}
	now := sight{tunnels: tunnels, listening: listening(), goroutines: runtime.NumGoroutine()}
	for _, target := range descriptors() {
		if strings.HasPrefix(target, "socket:") {
			now.sockets++
		} else {
			now.others++
		}
	}
	return now
}

// descriptors are what this process has open.
func descriptors() (targets []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil {
			targets = append(targets, target)
		}
	}
	return targets
}

// listening are this process's listening sockets in the host's network. One
// stays the same one as long as its inode does.
func listening() (sockets []string) {
	open := descriptors()
	for _, network := range []string{"tcp", "tcp6", "udp", "udp6"} {
		table, _ := os.ReadFile("/proc/net/" + network)
		for _, line := range strings.Split(string(table), "\n") {
			fields := strings.Fields(line)
			// 0A is LISTEN, 07 a socket that is not connected.
			if len(fields) > 9 && (fields[3] == "0A" || fields[3] == "07") && slices.Contains(open, "socket:["+fields[9]+"]") {
				sockets = append(sockets, strings.Join([]string{network, fields[1], fields[9]}, " "))
			}
		}
	}
	slices.Sort(sockets)
	return sockets
}

// expectAgain waits until a relay looks as before.
func (before sight) expectAgain(t *testing.T, w *world) {
	t.Helper()
	var now sight
	deadline := time.Now().Add(20 * time.Second)
	for {
		now = w.see(t)
		if reflect.DeepEqual(now.tunnels, before.tunnels) && slices.Equal(now.listening, before.listening) &&
			now.goroutines <= before.goroutines && now.others <= before.others && now.sockets <= before.sockets+stock {
			return
		}
		if time.Now().After(deadline) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("it looks like\n%+v\nand looked like\n%+v", now, before)
	if now.goroutines > before.goroutines {
		var profile strings.Builder
		_ = pprof.Lookup("goroutine").WriteTo(&profile, 1)
		t.Log(profile.String())
	}
}
