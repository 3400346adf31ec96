package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// many is a relay's configuration with so many peers, of which it knows nothing
// but their keys.
func many(t *testing.T, count int) *Config {
	t.Helper()
	config := &Config{
		PrivateKey: NewPrivateKey(),
		Addresses:  prefixes("10.77.0.1/24"),
		ListenPort: freePort(t),
		MTU:        1280,
		Stack:      StackGvisor,
	}
	for i := range count {
		config.Peers = append(config.Peers, Peer{
			Name:       fmt.Sprint("home-", i),
			PublicKey:  NewPrivateKey().Public(),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 78, byte(i >> 8), byte(i)}), 32)},
		})
	}
	return config
}

// TestThousandPeers prints what they cost.
func TestThousandPeers(t *testing.T) {
	const count = 1000
	config := many(t, count)
	relay := New("relay")
	before := heap()
	begin := time.Now()
	c := relay.Claim(config, zap.NewNop())
	t.Cleanup(func() { c.Release() })
	if err := c.Prepare(); err != nil {
		t.Fatal(err)
	}
	up := time.Since(begin)
	memory := (heap() - before) / count
	begin = time.Now()
	if got := len(relay.Status()); got != count {
		t.Errorf("it has %d peers", got)
	}
	t.Logf("%d peers: up after %v, %d KiB of memory for each, %v to look at them all",
		count, up.Round(time.Millisecond), memory>>10, time.Since(begin).Round(100*time.Microsecond))
}

// TestManyPeersAreSpread brings up tunnels with peers of each kind that is called
// at the start.
func TestManyPeersAreSpread(t *testing.T) {
	called := func(host string) func(*Config, int) {
		return func(config *Config, port int) {
			for i := range config.Peers {
				config.Peers[i].Endpoint = fmt.Sprintf("%s:%d", host, port)
				config.Peers[i].PersistentKeepalive = 25 * time.Second
			}
		}
	}
	for _, tt := range []struct {
		name  string
		count int
		known func(config *Config, port int) // where the peers are
	}{
		{"by address", 1000, called("127.0.0.1")},
		{"by name", 200, called("localhost")},
		{"remembered", 1000, func(config *Config, port int) {
			store := new(memoryStore)
			var stored []string
			for _, peer := range config.Peers {
				stored = append(stored, fmt.Sprintf(`%q:{"endpoint":"127.0.0.1:%d","heard":%q}`, peer.PublicKey, port, time.Now().Format(time.RFC3339)))
			}
			store.put(config.PrivateKey.Public(), `{"peers":{`+strings.Join(stored, ",")+`}}`)
			config.Store = store
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			homes, config := listenForCalls(t), many(t, tt.count)
			tt.known(config, homes.port)
			core, logs := observer.New(zap.DebugLevel)
			c := New("relay").Claim(config, zap.New(core))
			t.Cleanup(func() { c.Release() })
			if err := c.Prepare(); err != nil {
				t.Fatal(err)
			}
			await(t, func() error {
				if called := homes.count(); called < tt.count {
					return fmt.Errorf("%d of the peers have been called", called)
				}
				return nil
			})
			var calls []time.Time
			for _, entry := range deviceLines(logs) {
				if strings.Contains(detail(entry), "Sending handshake initiation") {
					calls = append(calls, entry.Time)
				}
			}
			took := calls[tt.count-1].Sub(calls[0])
			// A pause may be longer than it should be, and is never shorter.
			if least := time.Duration(tt.count-2) * callEvery; took < least {
				t.Errorf("%d peers were called within %v, want at least %v", tt.count, took, least)
			}
			t.Logf("%d peers were called within %v", tt.count, took.Round(time.Millisecond))
		})
	}
}

// TestOneOfManyChanges changes one peer of many, and wants the device to be told
// of that one alone.
func TestOneOfManyChanges(t *testing.T) {
	config := many(t, 1000)
	core, logs := observer.New(zap.DebugLevel)
	relay := New("relay")
	c := relay.Claim(config, zap.New(core))
	t.Cleanup(func() { c.Release() })
	if err := c.Prepare(); err != nil {
		t.Fatal(err)
	}
	one := 500
	name := relay.live.device.LookupPeer([32]byte(config.Peers[one].PublicKey)).String()
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"preshared key", func(c *Config) { c.Peers[one].PresharedKey = NewPresharedKey() }, []string{"Updating preshared key"}},
		{"endpoint", func(c *Config) { c.Peers[one].Endpoint = "127.0.0.1:9" }, []string{"Updating endpoint"}},
		{"keepalive", func(c *Config) { c.Peers[one].PersistentKeepalive = 40 * time.Second }, []string{"Updating persistent keepalive interval"}},
		{"allowed IPs", func(c *Config) { c.Peers[one].AllowedIPs = prefixes("10.79.0.0/16", "fd79::/64") }, []string{
			"Adding allowedip", "Adding allowedip", // beforehand
			"Removing allowedip",
		}},
		{"removed", func(c *Config) { c.Peers = slices.Delete(c.Peers, one, one+1) }, []string{"Removing"}},
		{"added", func(c *Config) { c.Peers = slices.Insert(c.Peers, 0, config.Peers[one]) }, []string{
			"Created", "Updating preshared key", "Adding allowedip", "Adding allowedip", "Updating endpoint",
			"Updating persistent keepalive interval",
		}},
	} {
		next := *c.Config()
		next.Peers = slices.Clone(next.Peers)
		test.change(&next)
		if test.name != "removed" && test.name != "added" {
			config = &next
		}
		seen := len(deviceLines(logs))
		begin := time.Now()
		younger := relay.Claim(&next, zap.New(core))
		t.Cleanup(func() { younger.Release() })
		if err := errors.Join(younger.Prepare(), c.Release()); err != nil {
			t.Fatal(err)
		}
		c = younger
		t.Logf("%s: after %v", test.name, time.Since(begin).Round(100*time.Microsecond))
		await(t, func() error {
			var told []string
			for _, entry := range deviceLines(logs)[seen:] {
				if peer, change, ok := strings.Cut(detail(entry), " - UAPI: "); ok {
					if told = append(told, change); peer != name {
						t.Fatalf("%s: %s was touched, which is another peer: %s", test.name, peer, change)
					}
				}
			}
			if !slices.Equal(told, test.want) {
				return fmt.Errorf("%s: the device was told %q, want %q", test.name, told, test.want)
			}
			return nil
		})
	}
}

// deviceLines are the log lines of wireguard-go.
func deviceLines(logs *observer.ObservedLogs) []observer.LoggedEntry {
	return logs.FilterMessage("wireguard-go").All()
}

func detail(entry observer.LoggedEntry) string { return fmt.Sprint(entry.ContextMap()["detail"]) }

// heap is how much memory is in use.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapInuse + stats.StackInuse
}

// homes are peers that never answer, all at one port.
type homes struct {
	port int

	mu     sync.Mutex
	called map[uint32]bool // by the sender index of the initiation
}

func listenForCalls(t *testing.T) *homes {
	t.Helper()
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	h := &homes{port: conn.LocalAddr().(*net.UDPAddr).Port, called: make(map[uint32]bool)}
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 1<<11)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			// An initiation (whitepaper, section 5.4.2).
			if n == 148 && buf[0] == 1 {
				h.mu.Lock()
				h.called[binary.LittleEndian.Uint32(buf[4:])] = true
				h.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		reading.Wait()
	})
	return h
}

func (h *homes) address() string { return fmt.Sprintf("127.0.0.1:%d", h.port) }

func (h *homes) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.called)
}
