package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// memoryStore is a Store of this process.
type memoryStore struct {
	mu     sync.Mutex
	values map[string][]byte
	writes int
	err    error // of the next calls
}

func (s *memoryStore) Load(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	value, ok := s.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return value, nil
}

func (s *memoryStore) Store(_ context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.values == nil {
		s.values = make(map[string][]byte)
	}
	s.values[key] = value
	s.writes++
	return nil
}

func (s *memoryStore) put(own PublicKey, text string) {
	_ = s.Store(context.Background(), "wireguard/"+hexKey(own)+"/endpoints.json", []byte(text))
}

func (s *memoryStore) content() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all strings.Builder
	for _, value := range s.values {
		all.Write(value)
	}
	return all.String()
}

func storedPeer(peer PublicKey, endpoint netip.AddrPort, heard time.Time) string {
	return fmt.Sprintf(`{"peers":{%q:{"endpoint":%q,"heard":%q}}}`, peer, endpoint, heard.Format(time.RFC3339Nano))
}

// silentHome has no keepalive, and so says nothing that a relay could learn its
// endpoint from.
func silentHome(t *testing.T) (relay, home *Config) {
	relay, home = ends(t)
	home.Peers[0].PersistentKeepalive = 0
	home.ListenPort = freePort(t)
	return relay, home
}

// A relay that starts anew reaches home where the one before it did.
func TestEndpointIsRememberedOverRestarts(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, store *memoryStore, c *Claim)
	}{
		{"an orderly end", func(t *testing.T, store *memoryStore, c *Claim) { c.Release() }},
		{"a kill", func(t *testing.T, store *memoryStore, c *Claim) {
			await(t, func() error {
				if store.content() == "" {
					return errors.New("nothing is written while it runs")
				}
				return nil
			})
			defer func(values map[string][]byte) { store.values = values }(store.values)
			c.Release()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			relayConfig, homeConfig := silentHome(t)
			store := new(memoryStore)
			relayConfig.Store = store
			first := claim(t, New("relay"), relayConfig)
			h := claim(t, New("home"), homeConfig)
			echoAt(t, first, 7)
			echoAt(t, h, 7)
			mustEcho(t, dial(t, h, relayAddress, 7), "home calls")
			tt.end(t, store, first)

			// The same port, so that it is the same to home.
			second := claim(t, New("relay"), relayConfig)
			begin := time.Now()
			mustEcho(t, dial(t, second, homeAddress, 7), "the new one calls")
			t.Logf("home was reached after %v", time.Since(begin).Round(time.Millisecond))
		})
	}
}

func TestStoredEndpoints(t *testing.T) {
	homeKey := NewPrivateKey().Public()
	somewhere := netip.MustParseAddrPort("127.0.0.1:9")
	recent := time.Now().Add(-time.Hour)
	good := storedPeer(homeKey, somewhere, recent)
	for _, tt := range []struct {
		name, stored string
		storeError   error
		want         bool   // it is called there
		warning      string // part of it
	}{
		{name: "good", stored: good, want: true},
		{name: "none"},
		{name: "another peer's", stored: storedPeer(key(7), somewhere, recent)},
		{name: "stale", stored: storedPeer(homeKey, somewhere, time.Now().Add(-8*24*time.Hour))},
		{name: "half written", stored: good[:len(good)-3], warning: "cannot be read"},
		{name: "of another kind", stored: `[]`, warning: "cannot be read"},
		{name: "no endpoint", stored: strings.Replace(good, "127.0.0.1:9", "0.0.0.0:9", 1), warning: "cannot be read"},
		{name: "no port", stored: strings.Replace(good, "127.0.0.1:9", "127.0.0.1:0", 1), warning: "cannot be read"},
		{name: "no key", stored: strings.Replace(good, homeKey.String(), "x", 1), warning: "cannot be read"},
		{name: "a broken storage", storeError: errors.New("on fire"), warning: "on fire"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, _ := ends(t)
			config.Peers[0].PublicKey = homeKey
			store := &memoryStore{err: tt.storeError}
			if tt.stored != "" {
				store.put(config.PrivateKey.Public(), tt.stored)
			}
			config.Store = store
			core, logs := observer.New(zap.InfoLevel)
			tunnel := New("relay")
			c := tunnel.Claim(config, zap.New(core))
			defer c.Release()
			if err := c.Prepare(); err != nil {
				t.Fatal(err)
			}
			called := func() bool {
				return logs.FilterMessageSnippet("last heard").FilterLevelExact(zapcore.InfoLevel).Len() > 0
			}
			done := func() bool {
				if tt.warning != "" {
					for _, entry := range logs.FilterLevelExact(zapcore.WarnLevel).All() {
						if strings.Contains(entry.Message+fmt.Sprint(entry.ContextMap()), tt.warning) {
							return true
						}
					}
					return false
				}
				return !tt.want || tunnel.Status()[0].Endpoint == somewhere && called()
			}
			await(t, func() error {
				if !done() {
					return fmt.Errorf("status %+v, log %v", tunnel.Status(), logs.All())
				}
				return nil
			})
			if called() != tt.want {
				t.Errorf("called %v, want %v", called(), tt.want)
			}
		})
	}
}

// A configured endpoint is where a peer is called, whatever was stored.
func TestConfiguredEndpointIsNotStored(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	store := new(memoryStore)
	homeConfig.Store = store
	r := claim(t, New("relay"), relayConfig)
	echoAt(t, r, 7)
	h := claim(t, New("home"), homeConfig)
	mustEcho(t, dial(t, h, relayAddress, 7), "x")
	h.Release()
	if content := store.content(); content != "" {
		t.Errorf("stored %s", content)
	}
}

// A peer that moves about all the time does not wear out the storage.
func TestWritesAreFew(t *testing.T) {
	config, _ := ends(t)
	store := new(memoryStore)
	m := newEndpointMemory(t.Context(), config.PrivateKey.Public(), nil, newCalls(), func() {})
	peer := config.Peers[0]
	look := func(i int) {
		m.look(store, config.Peers, map[PublicKey]PeerStatus{peer.PublicKey: {
			Endpoint: netip.AddrPortFrom(homeAddress, uint16(1000+i)), LastHandshake: time.Now(),
		}}, zap.NewNop())
	}
	for i := range 1000 {
		look(i)
	}
	await(t, func() error {
		look(1000)
		store.mu.Lock()
		defer store.mu.Unlock()
		if store.writes == 0 {
			return errors.New("nothing is written")
		}
		return nil
	})
	look(1001)
	m.close(nil)
	if store.writes > 2 {
		t.Errorf("%d writes", store.writes)
	}
	if !strings.Contains(store.content(), ":2001") {
		t.Errorf("stored %s", store.content())
	}
}
