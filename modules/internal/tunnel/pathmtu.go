package tunnel

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/device"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// The tunnel's MTU with `mtu auto`. It starts at 1280 and follows what the
// paths to the peers carry, at most 1420. A path is measured with echo requests
// to an address of the peer: when the peer first comes up, and again when its
// endpoint changes, with each new session, while there is traffic (a path that
// carries less than before is silent about it), and now and then while it
// carries less than 1420.
const (
	// checkInterval is how often a path that is in use is checked to carry
	// what it did: for as long may connections stall on one that no longer
	// does. A check is one packet and its answer.
	checkInterval = 15 * time.Second

	// checkTraffic is how many bytes in either direction count as use.
	checkTraffic = 16 << 10

	// moveInterval is how long an endpoint must have been left alone before
	// its change counts, for a peer that speaks from two places in turn.
	moveInterval = 5 * time.Second

	// growInterval is how often a path of less than 1420 is looked at for
	// having become larger.
	growInterval = 10 * time.Minute

	// retryFirst is how long a peer is left alone that has answered no echo
	// request; each time after that, twice as long up to growInterval.
	retryFirst = 10 * time.Second

	// pathMemory is for how long after its last handshake a peer's path bounds
	// the tunnel's MTU, so that a peer that speaks now and then does not make
	// it go up and down.
	pathMemory = 15 * time.Minute

	// searchesAtOnce bounds the searches that run at one time.
	searchesAtOnce = 4

	// targetsMax bounds the addresses of one peer that are asked.
	targetsMax = 8
)

// paths knows what the paths to the peers carry, and holds the tunnel's MTU to
// it. Its methods may be called by several goroutines.
type paths struct {
	ping   func(ctx context.Context, remote netip.Addr, size int) error
	setMTU func(mtu int) error
	log    func() *zap.Logger // called with mu not held

	ctx      context.Context
	stop     context.CancelFunc
	searches sync.WaitGroup
	slots    chan struct{}

	mu    sync.Mutex
	fixed int // the configured MTU; 0: auto
	mtu   int // the MTU in force
	peers map[PublicKey]*path
	// refused is an MTU that the stack did not take, so that it is logged once.
	refused int
}

// path is what is known of the path to one peer. paths.mu guards it.
type path struct {
	name   string
	mtu    int            // 0: not known
	at     netip.AddrPort // the endpoint where it was found
	target netip.Addr     // who answers there
	wait   time.Duration  // how long for an answer

	handshake time.Time // the last one, at the last look
	session   time.Time // the one at the last check
	checked   time.Time // when the last check began
	traffic   uint64    // bytes both ways until then
	grow      time.Time // when to look for more
	retry     time.Time // if not known: when to ask again
	backoff   time.Duration
	busy      bool // a search or check runs
	told      bool // the log says that it does not answer
}

// startMTU is the MTU that a tunnel begins with.
func startMTU(config *Config) int {
	if config.MTU == 0 {
		return netstack.MinMTU
	}
	return config.MTU
}

// newPaths starts with the MTU that setMTU would find in force.
func newPaths(config *Config, ping func(context.Context, netip.Addr, int) error, setMTU func(int) error, log func() *zap.Logger) *paths {
	p := &paths{
		ping:   ping,
		setMTU: setMTU,
		log:    log,
		slots:  make(chan struct{}, searchesAtOnce),
		fixed:  config.MTU,
		mtu:    startMTU(config),
		peers:  make(map[PublicKey]*path),
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// close ends all searches.
func (p *paths) close() {
	p.stop()
	p.searches.Wait()
}

// inForce is the tunnel's MTU.
func (p *paths) inForce() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mtu
}

// of is what the path to a peer carries, 0 if that is not known.
func (p *paths) of(key PublicKey) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if path := p.peers[key]; path != nil {
		return path.mtu
	}
	return 0
}

// configure takes over a configured MTU, where 0 means auto. Coming from a
// number, auto begins anew.
func (p *paths) configure(mtu int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if mtu == p.fixed {
		return nil
	}
	start := startMTU(&Config{MTU: mtu})
	if err := p.setMTU(start); err != nil {
		return err
	}
	p.fixed, p.mtu = mtu, start
	clear(p.peers)
	return nil
}

// look compares what is known with what the device says, and starts what has
// to be found out. The keeper calls it once in a second.
func (p *paths) look(peers []Peer, status map[PublicKey]PeerStatus) {
	now := time.Now()
	p.mu.Lock()
	if p.fixed != 0 {
		p.mu.Unlock()
		return
	}
	wanted := make(map[PublicKey]bool)
	for i := range peers {
		peer := &peers[i]
		wanted[peer.PublicKey] = true
		p.lookAt(now, peer, status[peer.PublicKey])
	}
	for key := range p.peers {
		if !wanted[key] {
			delete(p.peers, key)
		}
	}
	change := p.settle(now)
	p.mu.Unlock()
	change.write(p.log())
}

// lookAt starts what has to be found out about one peer. p.mu is held.
func (p *paths) lookAt(now time.Time, peer *Peer, status PeerStatus) {
	known := p.peers[peer.PublicKey]
	if known == nil {
		known = new(path)
		p.peers[peer.PublicKey] = known
	}
	known.name, known.handshake = peer.Name, status.LastHandshake
	if known.busy || !known.isLive(now) {
		return
	}
	traffic := status.Received + status.Sent
	moved := known.at != status.Endpoint && now.Sub(known.checked) > moveInterval
	switch {
	case known.mtu == 0:
		if now.Before(known.retry) && !moved {
			return
		}
	case moved, known.session != status.LastHandshake:
	case traffic-known.traffic > checkTraffic && now.Sub(known.checked) > checkInterval:
	case known.mtu < netstack.MaxPing && now.After(known.grow):
	default:
		return
	}
	known.busy = true
	known.session, known.checked, known.traffic = status.LastHandshake, now, traffic
	found := *known
	targets := peer.targets()
	p.searches.Go(func() {
		if mtu, s, ok := p.explore(found, status.Endpoint, targets); ok {
			p.note(peer.PublicKey, known, status.Endpoint, mtu, s)
		}
	})
}

// isLive tells whether the peer has a session. p.mu is held.
func (k *path) isLive(now time.Time) bool { return now.Sub(k.handshake) < sessionMax }

// targets are the addresses of a peer that echo requests go to: what its name
// stands for, and those that can only be its own.
func (peer *Peer) targets() []netip.Addr {
	targets := slices.Clone(peer.Hosts)
	for _, prefix := range peer.AllowedIPs {
		if prefix.IsSingleIP() && !slices.Contains(targets, prefix.Addr()) {
			targets = append(targets, prefix.Addr())
		}
	}
	return targets[:min(len(targets), targetsMax)]
}

// explore finds out what the path to a peer carries now; 0 means that nothing
// was answered. It is false if the tunnel goes down meanwhile.
func (p *paths) explore(found path, endpoint netip.AddrPort, targets []netip.Addr) (mtu int, s search, ok bool) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-p.ctx.Done():
		return 0, s, false
	}
	s = search{ping: p.ping, targets: targets, target: found.target, wait: found.wait}
	if found.mtu > 0 && slices.Contains(targets, found.target) && s.carries(p.ctx, found.mtu) {
		mtu = found.mtu
		if moved := found.at != endpoint; moved || time.Now().After(found.grow) {
			mtu = s.above(p.ctx, mtu, moved)
		}
	} else {
		mtu = s.run(p.ctx)
	}
	return mtu, s, p.ctx.Err() == nil
}

// note takes over what explore has found of a peer that is still there.
func (p *paths) note(key PublicKey, known *path, endpoint netip.AddrPort, mtu int, s search) {
	now := time.Now()
	p.mu.Lock()
	if p.peers[key] != known {
		p.mu.Unlock()
		return
	}
	known.busy = false
	silent := false
	switch {
	case mtu > 0:
		if mtu != known.mtu || now.After(known.grow) || known.at != endpoint {
			known.grow = now.Add(growInterval)
		}
		known.mtu, known.at, known.target, known.wait = mtu, endpoint, s.target, s.wait
		known.backoff, known.told = 0, false
	case known.mtu > 0 && known.at == endpoint:
		// Nothing passes at the moment, which says nothing about sizes.
	default:
		known.mtu, known.at = 0, endpoint
		known.backoff = min(max(2*known.backoff, retryFirst), growInterval)
		known.retry = now.Add(known.backoff)
		silent, known.told = !known.told, true
	}
	name := known.name
	change := p.settle(now)
	p.mu.Unlock()

	if silent {
		reason := "it answers no echo request (ping) through the tunnel; let its firewall answer them, or set the tunnel's mtu"
		if len(s.targets) == 0 {
			reason = "it has no address of its own to send an echo request to; give the peer a `host`, or set the tunnel's mtu"
		}
		p.log().Info("the path to a peer cannot be measured, so the tunnel's MTU stays at the least while that peer is up",
			zap.String("peer", name), zap.Int("mtu", netstack.MinMTU), zap.String("reason", reason))
	}
	change.write(p.log())
}

// mtuChange is a change of the tunnel's MTU, or nil for none.
type mtuChange struct {
	from, to int
	peer     string // who governs it, if anybody
	path     int    // what the path to that peer carries, 0 if not known
	reason   string
	err      error
}

// roomForPadding is the tunnel's MTU for a path. A peer pads what it sends to a
// multiple of 16 bytes within an MTU of its own, 1420 as a rule, whatever the
// MSS is that we have told it. A segment of 1400 bytes would take 1408, and
// the kernel's WireGuard would send it in fragments without anybody noticing.
func roomForPadding(path int) int {
	if path >= netstack.MaxPing {
		return path
	}
	return path &^ (device.PaddingMultiple - 1)
}

// settle sets the tunnel's MTU to what is known: the least of the paths, and
// 1280 while there is a live peer whose path is not known. p.mu is held.
func (p *paths) settle(now time.Time) *mtuChange {
	change := &mtuChange{from: p.mtu, to: netstack.MinMTU, reason: "no peer is up"}
	least := 0
	for _, known := range p.peers {
		switch {
		case known.mtu == 0 && !known.isLive(now), now.Sub(known.handshake) > pathMemory:
			continue
		case known.mtu == 0:
			change.reason = "the path to the peer is not known yet"
		case (least == 0 || known.mtu < least) && known.mtu >= netstack.MaxPing:
			change.reason = "the paths to all peers carry the most that the tunnel uses"
		case least == 0 || known.mtu < least:
			change.reason = "the path to the peer carries no more"
		default:
			continue
		}
		least, change.peer, change.path = known.mtu, known.name, known.mtu
		change.to = max(roomForPadding(known.mtu), netstack.MinMTU)
		if least == 0 {
			break
		}
	}
	if p.fixed != 0 || change.to == p.mtu {
		return nil
	}
	if change.err = p.setMTU(change.to); change.err != nil {
		if p.refused == change.to {
			return nil
		}
		p.refused = change.to
		return change
	}
	p.mtu, p.refused = change.to, 0
	return change
}

// write tells a logger of the change.
func (c *mtuChange) write(logger *zap.Logger) {
	switch {
	case c == nil:
	case c.err != nil:
		logger.Error("changing the tunnel's MTU", zap.Int("mtu", c.to), zap.Error(c.err))
	default:
		logger.Info("tunnel's MTU changed", zap.Int("mtu", c.to), zap.Int("former", c.from),
			zap.String("peer", c.peer), zap.Int("path_mtu", c.path), zap.String("reason", c.reason))
	}
}

// MTU is the size of the largest packet inside the live tunnel, in bytes, or 0
// if it is down.
func (t *Tunnel) MTU() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		return 0
	}
	return t.live.paths.inForce()
}
