package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// keeperInterval is how often endpoints are looked after.
	keeperInterval = time.Second

	// resolveBackoffMax bounds the time between two attempts to resolve a
	// name that does not resolve.
	resolveBackoffMax = 30 * time.Second

	// resolveTimeout bounds one attempt.
	resolveTimeout = 10 * time.Second

	// lookupsAtOnce bounds how many names are looked up at a time: each costs
	// two sockets, and the resolver's patience.
	lookupsAtOnce = 64

	// unansweredAfter is how long an endpoint may leave handshakes unanswered
	// before the next address is tried: one initiation, which is sent again
	// four times until the next may be made (whitepaper, section 6.1), and a
	// second's grace.
	unansweredAfter = 6 * time.Second

	// sessionMax is when a session ends unless it is renewed (whitepaper,
	// section 6.1, Reject-After-Time). A peer whose last handshake is older
	// has not answered since.
	sessionMax = 180 * time.Second
)

// endpointName is what the keeper knows of one peer whose endpoint is a name.
type endpointName struct {
	name    string           // host:port as configured
	tried   []netip.AddrPort // since the last time all had been tried
	setAt   time.Time        // when the endpoint was last set; zero: never
	sentAt  uint64           // bytes sent until then
	retryAt time.Time
	backoff time.Duration
	failed  bool // the last attempt failed and was logged
	told    bool // the log has an address that was tried since the peer answered last
	ipv6    preference

	// lookup gets the answer of the one that is under way; nil if none is.
	lookup chan lookup
	// forIPv6 is that the lookup is for the preference.
	forIPv6 bool
}

// lookup is what has been found of an endpoint's name.
type lookup struct {
	candidates []netip.AddrPort
	err        error
}

// keep looks after the peers until ctx is done: whether they are heard, and
// where they are called.
func (l *live) keep(ctx context.Context) {
	defer close(l.keeperDone)
	ticker := time.NewTicker(keeperInterval)
	defer ticker.Stop()
	names := make(map[PublicKey]*endpointName)
	routes := routes{ways: make(map[PublicKey]way)}
	var clock clock
	began := time.Now()
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { l.pokeHosts(ctx) })
	beside.Go(func() { watchRoutes(ctx, l.wake) })
	var memory *endpointMemory
	var stray stray
	for {
		l.mu.Lock()
		config := l.config
		l.mu.Unlock()
		peers, status := config.Peers, l.statusByKey()
		if own := config.PrivateKey.Public(); memory == nil || memory.own != own {
			if memory != nil {
				memory.close(nil)
			}
			memory = newEndpointMemory(ctx, own, l.device, l.calls, l.wake)
		}
		if slept := clock.slept(time.Now(), time.Since(began)); slept > sleptAtLeast {
			l.callAll(status, slept)
		}
		l.notePresence(status)
		l.stalls.look()
		l.followRoutes(&routes, peers, status)
		l.askSilent(peers, status)
		l.paths.look(peers, status)
		memory.look(config.Store, peers, status, l.log())
		stray.look(l, memory, peers, status)
		l.keepEndpoints(ctx, &beside, peers, names, routes, status)
		l.keepKeepalives(status)
		select {
		case <-ctx.Done():
			memory.close(l.statusByKey())
			return
		case err := <-l.bind.Failed():
			l.reopen(err)
		case from := <-l.bind.Stray():
			stray.call(l, from, peers, l.statusByKey())
		case <-ticker.C:
		case <-l.changed:
		}
	}
}

func (l *live) statusByKey() map[PublicKey]PeerStatus {
	status := make(map[PublicKey]PeerStatus)
	for _, s := range l.status() {
		status[s.PublicKey] = s
	}
	return status
}

// keepEndpoints resolves the endpoints that are names: at once, and again
// when handshakes go unanswered, because the name may mean another address by
// now. It does not touch a peer that answers, since where a peer speaks from is
// where it is, but for trying IPv6 beside IPv4.
func (l *live) keepEndpoints(ctx context.Context, beside *sync.WaitGroup, peers []Peer, names map[PublicKey]*endpointName, routes routes, status map[PublicKey]PeerStatus) {
	wanted := make(map[PublicKey]bool)
	for i := range peers {
		peer := &peers[i]
		if !named(peer.Endpoint) {
			continue
		}
		wanted[peer.PublicKey] = true
		e := names[peer.PublicKey]
		if e == nil || e.name != peer.Endpoint {
			e = &endpointName{name: peer.Endpoint}
			names[peer.PublicKey] = e
		}
		l.keepEndpoint(ctx, beside, peer, e, routes.cut(peer.PublicKey), status[peer.PublicKey])
	}
	for key := range names {
		if !wanted[key] {
			delete(names, key)
		}
	}
}

func (l *live) keepEndpoint(ctx context.Context, beside *sync.WaitGroup, peer *Peer, e *endpointName, cut bool, status PeerStatus) {
	now := time.Now()
	if e.lookup == nil {
		if !e.setAt.IsZero() && status.LastHandshake.After(e.setAt) {
			if e.told {
				l.log().Info("peer answers", zap.String("peer", peer.Name), zap.String("endpoint", e.name), zap.Stringer("address", status.Endpoint))
			}
			e.told, e.tried = false, []netip.AddrPort{status.Endpoint}
		}
		due := e.due(now, peer, cut, status, l.bind.UnansweredSince(status.Endpoint))
		e.forIPv6 = !due && l.prefersIPv6(now, peer, e, status)
		if due || e.forIPv6 {
			e.lookup = make(chan lookup, 1)
			beside.Go(func() {
				var found lookup
				select {
				case l.lookups <- struct{}{}:
					found.candidates, found.err = endpointCandidates(ctx, e.name)
					<-l.lookups
				case <-ctx.Done():
					found.err = ctx.Err()
				}
				e.lookup <- found
				l.wake()
			})
		}
		return
	}
	var found lookup
	select {
	case found = <-e.lookup:
		e.lookup = nil
	default:
		return // a slow resolver holds nobody else up
	}
	if e.forIPv6 && !e.due(now, peer, cut, status, l.bind.UnansweredSince(status.Endpoint)) {
		l.tryIPv6(now, peer, e, found, status)
		return
	}
	if found.err != nil {
		e.backoff = min(max(2*e.backoff, time.Second), resolveBackoffMax)
		e.retryAt = now.Add(e.backoff)
		if !e.failed && ctx.Err() == nil {
			l.log().Warn("peer's endpoint cannot be resolved; trying again until it can",
				zap.String("peer", peer.Name), zap.String("endpoint", e.name), zap.Error(found.err))
		}
		e.failed = true
		return
	}
	endpoint := e.next(found.candidates)
	first := e.setAt.IsZero()
	e.setAt, e.sentAt, e.backoff, e.failed = now, status.Sent, 0, false
	if !first && endpoint == status.Endpoint {
		return
	}
	known := l.peer(peer.PublicKey)
	if known != nil && !first {
		// Before the endpoint, as in endpointMemory.call.
		known.ExpireCurrentKeypairs()
	}
	if err := l.device.IpcSet(endpointChange(peer.PublicKey, endpoint)); err != nil {
		l.log().Error("setting peer's endpoint", zap.String("peer", peer.Name), zap.Error(err))
		return
	}
	if !first {
		l.calls.handshake(l.device, peer.PublicKey)
	}
	l.wake() // for the keepalive, which begins a handshake as well, and for followRoutes
	if e.told {
		return // a peer that is away is tried at one address after the other
	}
	e.told = !first
	l.log().Info("peer's endpoint resolved",
		zap.String("peer", peer.Name), zap.String("endpoint", e.name), zap.Stringer("address", endpoint))
}

// due says whether the name is to be looked up. cut is that this host has no
// route to its present address, unanswered since when that has not answered a
// handshake, zero if it has; a handshake that the peer began is as good.
func (e *endpointName) due(now time.Time, peer *Peer, cut bool, status PeerStatus, unanswered time.Time) bool {
	if now.Before(e.retryAt) {
		return false
	}
	if e.setAt.IsZero() || !status.Endpoint.IsValid() {
		// Not yet, or it was lost when the peer was removed and added again.
		return true
	}
	if cut {
		return true
	}
	if now.Sub(e.setAt) < unansweredAfter {
		return false
	}
	if !unanswered.IsZero() && unanswered.Before(e.setAt) {
		unanswered = e.setAt // it is from when it was called there before
	}
	if unanswered.After(status.LastHandshake) {
		return now.Sub(unanswered) > unansweredAfter
	}
	silent := now.Sub(status.LastHandshake) > sessionMax
	calling := status.LastHandshake.Before(e.setAt) || peer.PersistentKeepalive > 0 || status.Sent > e.sentAt
	return silent && calling
}

// wake makes the keeper look at once.
func (l *live) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

func (l *live) log() *zap.Logger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.logger
}

// endpointCandidates resolves a host:port, IPv6 before IPv4: IPv6 does not pass
// the carrier's NAT.
func endpointCandidates(ctx context.Context, name string) ([]netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	host, portText, err := net.SplitHostPort(name)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, err
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	own := ownAddresses()
	var candidates []netip.AddrPort
	for _, address := range addresses {
		address = address.Unmap()
		if !own[address] {
			candidates = append(candidates, netip.AddrPortFrom(address, uint16(port)))
		}
	}
	if len(candidates) == 0 {
		return nil, fmt.Errorf("%s is only this machine's own addresses %v: the tunnel would dial itself; use a name whose A and AAAA records are both the other end's", host, addresses)
	}
	candidates = slices.DeleteFunc(candidates, unroutable)
	if len(candidates) == 0 {
		return nil, fmt.Errorf("%s is %v, to which this machine has no route", host, addresses)
	}
	slices.SortStableFunc(candidates, func(a, b netip.AddrPort) int {
		return b.Addr().BitLen() - a.Addr().BitLen()
	})
	return candidates, nil
}

// next is the first address that was not tried yet. After the last one it
// starts anew.
func (e *endpointName) next(candidates []netip.AddrPort) netip.AddrPort {
	for round := 0; round < 2; round++ {
		for _, candidate := range candidates {
			if !slices.Contains(e.tried, candidate) {
				e.tried = append(e.tried, candidate)
				return candidate
			}
		}
		e.tried = nil
	}
	return candidates[0]
}

// ownAddresses are this machine's addresses, without loopback: a name for
// loopback is meant.
func ownAddresses() map[netip.Addr]bool {
	own := make(map[netip.Addr]bool)
	addresses, _ := net.InterfaceAddrs()
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok && !network.IP.IsLoopback() {
			if ip, ok := netip.AddrFromSlice(network.IP); ok {
				own[ip.Unmap()] = true
			}
		}
	}
	return own
}

// unroutable tells whether this machine has no route to address, as it has
// none to an IPv6 address where there is only IPv4.
func unroutable(address netip.AddrPort) bool { return !sourceFor(address).IsValid() }
