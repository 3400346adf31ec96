package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/device"
)

// Store keeps small values over restarts. Caddy's storage has it. Load returns
// an error that is fs.ErrNotExist where there is no value.
type Store interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Store(ctx context.Context, key string, value []byte) error
}

const (
	// rememberEvery is the least time between two writes to the store.
	rememberEvery = 10 * time.Second

	// rememberFor is for how long an endpoint is worth a call: behind a carrier's
	// NAT it is another subscriber's by then.
	rememberFor = 7 * 24 * time.Hour

	// confirmEvery is how often the time is written at which a peer was heard
	// where it has been all the time.
	confirmEvery = 6 * time.Hour

	// storeTimeout bounds a use of the store, which may be on another machine.
	storeTimeout = 10 * time.Second

	// forgetTimeout is how long a tunnel that goes down waits for its last
	// write.
	forgetTimeout = 2 * time.Second
)

// endpointMemory keeps where the peers that have no configured endpoint were
// last heard. A relay that had forgotten it would be deaf until they handshake
// again, which is more than two minutes for one that has nothing to send: its
// keepalives do not make it notice.
type endpointMemory struct {
	own    PublicKey
	key    string // in the store
	life   context.Context
	end    context.CancelFunc
	device *device.Device
	calls  *calls

	// wake makes the keeper look at once.
	wake func()

	mu     sync.Mutex
	store  Store // nil if none
	peers  []Peer
	logger *zap.Logger
	known  map[PublicKey]heardAt
	loaded bool
	since  time.Time // when it was loaded
	dirty  bool      // known differs from what is stored
	busy   bool      // with the store
	failed bool      // at the last write, which was logged
	next   time.Time

	storing sync.WaitGroup
}

// heardAt is where and when a peer was heard.
type heardAt struct {
	Endpoint netip.AddrPort `json:"endpoint"`
	Heard    time.Time      `json:"heard"`
}

// storedEndpoints is what the store has for one public key of this end.
type storedEndpoints struct {
	Peers map[string]heardAt `json:"peers"` // by public key
}

func newEndpointMemory(ctx context.Context, own PublicKey, dev *device.Device, calls *calls, wake func()) *endpointMemory {
	life, end := context.WithCancel(ctx)
	return &endpointMemory{
		own:  own,
		life: life,
		end:  end,
		// A public key in base64 is no name of a file.
		key:    "wireguard/" + hexKey(own) + "/endpoints.json",
		device: dev,
		calls:  calls,
		wake:   wake,
		known:  make(map[PublicKey]heardAt),
	}
}

// look calls peers where they were last heard, and remembers where they are.
func (m *endpointMemory) look(store Store, peers []Peer, status map[PublicKey]PeerStatus, logger *zap.Logger) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.store, m.peers, m.logger = store, peers, logger
	if store == nil {
		return
	}
	if !m.loaded {
		if !m.busy {
			m.busy = true
			m.storing.Go(func() { m.load(store, logger) })
		}
		return
	}
	now := time.Now()
	var calling []Peer
	for _, peer := range peers {
		known := m.known[peer.PublicKey]
		if peer.Endpoint == "" && !status[peer.PublicKey].Endpoint.IsValid() && known.Endpoint.IsValid() && now.Sub(known.Heard) < rememberFor {
			calling = append(calling, peer)
		}
	}
	m.call(calling, logger)
	m.note(status, now)
	if m.dirty && !m.busy && now.After(m.next) {
		m.busy, m.dirty, m.next = true, false, now.Add(rememberEvery)
		value, err := m.encode(peers)
		m.storing.Go(func() { m.write(m.life, storeTimeout, store, value, err, logger) })
	}
}

// recall calls those of the peers again whose last place is known.
func (m *endpointMemory) recall(peers []Peer, logger *zap.Logger) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var known []Peer
	for _, peer := range peers {
		if at := m.known[peer.PublicKey]; at.Endpoint.IsValid() && time.Since(at.Heard) < rememberFor {
			known = append(known, peer)
		}
	}
	m.call(known, logger)
}

// tried tells whether the peers have been called where they were last heard, and have had
// time to answer.
func (m *endpointMemory) tried() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store == nil || m.loaded && time.Since(m.since) > strayAfter
}

// note remembers where the peers are that have been heard. m.mu is held.
func (m *endpointMemory) note(status map[PublicKey]PeerStatus, now time.Time) {
	for _, peer := range m.peers {
		s, known := status[peer.PublicKey], m.known[peer.PublicKey]
		if peer.Endpoint != "" || s.LastHandshake.IsZero() || !s.Endpoint.IsValid() {
			continue // where it is configured, or where it was called and has not answered
		}
		if s.Endpoint != known.Endpoint || now.Sub(known.Heard) > confirmEvery && now.Sub(s.LastReceived) < confirmEvery {
			m.known[peer.PublicKey] = heardAt{s.Endpoint, now}
			m.dirty = true
		}
	}
}

// call points peers at where they were last heard, and begins their handshakes.
// m.mu is held.
func (m *endpointMemory) call(peers []Peer, logger *zap.Logger) {
	for i := range peers {
		peer := &peers[i]
		endpoint := m.known[peer.PublicKey].Endpoint
		known := m.device.LookupPeer(device.NoisePublicKey(peer.PublicKey))
		if known == nil {
			continue
		}
		// A keepalive or a dial that had no endpoint yet has begun the 5 s in
		// which there is no other handshake (whitepaper, section 6.1). This must
		// come before the endpoint: a dial may begin a handshake as soon as that
		// is there, and a second one within 16 ms has the same timestamp, which
		// the peer takes for a replay, as often as it is sent again.
		known.ExpireCurrentKeypairs()
		if err := m.device.IpcSet(endpointChange(peer.PublicKey, endpoint)); err != nil {
			logger.Error("setting peer's endpoint", zap.String("peer", peer.Name), zap.Error(err))
			delete(m.known, peer.PublicKey)
			continue
		}
		logger.Info("calling peer where it was last heard", zap.String("peer", peer.Name), zap.Stringer("endpoint", endpoint))
		m.calls.handshake(m.device, peer.PublicKey)
	}
}

// load takes what the store has. What cannot be read is as good as nothing.
func (m *endpointMemory) load(store Store, logger *zap.Logger) {
	ctx, cancel := context.WithTimeout(m.life, storeTimeout)
	defer cancel()
	value, err := store.Load(ctx, m.key)
	var known map[PublicKey]heardAt
	if err == nil {
		known, err = decodeEndpoints(value)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && ctx.Err() != context.Canceled {
		logger.Warn("where peers were last heard cannot be read from the storage; they are called when they have called", zap.String("key", m.key), zap.Error(err))
	}
	m.mu.Lock()
	maps.Copy(m.known, known)
	m.loaded, m.busy, m.since = true, false, time.Now()
	m.mu.Unlock()
	m.wake()
}

func (m *endpointMemory) write(ctx context.Context, timeout time.Duration, store Store, value []byte, err error, logger *zap.Logger) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err == nil {
		err = store.Store(ctx, m.key, value)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy = false
	if err != nil {
		m.dirty = true
		if !m.failed && ctx.Err() != context.Canceled {
			logger.Warn("where peers are cannot be written to the storage; after a restart they are unreachable until they call", zap.String("key", m.key), zap.Error(err))
		}
	}
	m.failed = err != nil
}

// close notes where the peers are at last, and writes what has not been written
// yet. Nobody looks any more.
func (m *endpointMemory) close(status map[PublicKey]PeerStatus) {
	m.end()
	m.storing.Wait()
	m.mu.Lock()
	m.note(status, time.Now())
	m.mu.Unlock()
	if m.store == nil || !m.loaded || !m.dirty {
		return
	}
	value, err := m.encode(m.peers)
	m.write(context.Background(), forgetTimeout, m.store, value, err, m.logger)
}

// encode is known for the store, without peers that are no longer there. m.mu
// is held.
func (m *endpointMemory) encode(peers []Peer) ([]byte, error) {
	stored := storedEndpoints{Peers: make(map[string]heardAt)}
	for _, peer := range peers {
		if known, ok := m.known[peer.PublicKey]; ok {
			stored.Peers[peer.PublicKey.String()] = known
		}
	}
	return json.Marshal(stored)
}

func decodeEndpoints(value []byte) (map[PublicKey]heardAt, error) {
	var stored storedEndpoints
	if err := json.Unmarshal(value, &stored); err != nil {
		return nil, fmt.Errorf("decoding endpoints: %w", err)
	}
	known := make(map[PublicKey]heardAt, len(stored.Peers))
	for text, heard := range stored.Peers {
		key, err := ParsePublicKey(text)
		if err != nil {
			return nil, fmt.Errorf("decoding endpoints: %w", err)
		}
		if address := heard.Endpoint.Addr(); !address.IsValid() || address.IsUnspecified() || address.IsMulticast() || heard.Endpoint.Port() == 0 {
			return nil, fmt.Errorf("decoding endpoints: %q is no endpoint", heard.Endpoint)
		}
		known[key] = heard
	}
	return known, nil
}
