package kernelns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// place is a namespace that is set up, with what is kept of it at hand. A
// stack has one at a time.
type place struct {
	*namespace
	stocks  stocks
	clients *clients
	ipv6    bool

	// life ends when the stack leaves the place, for another one or for good.
	life  context.Context
	leave context.CancelFunc

	// binding is held by the one UDP listener that binds.
	binding sync.Mutex

	// what it has now
	mtu       int // the device's
	addresses []netip.Prefix
	routes    []route
}

// wanted is what a place is to be like.
type wanted struct {
	mtu        int
	addresses  []netip.Prefix
	congestion string
}

func newPlace(w wanted, logger *zap.Logger) (*place, error) {
	n, err := newNamespace(logger)
	if err != nil {
		return nil, err
	}
	return settle(n, w)
}

// settle makes a place of a new namespace, which ends if that fails.
func settle(n *namespace, w wanted) (_ *place, err error) {
	p := &place{namespace: n, stocks: newStocks(n), clients: newClients(n)}
	p.life, p.leave = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			p.close()
			p.tun.Close()
		}
	}()
	if fd, err := p.stocks.tcp6.take(p.life); err == nil {
		p.ipv6 = true
		unix.Close(fd)
	}
	p.mtu = deviceMTU(w.mtu)
	if err := n.prepare(p.mtu, p.ipv6); err != nil {
		return nil, err
	}
	return p, p.set(w)
}

// set gives the place its addresses and routes: what it has and is not wanted
// goes, after what is wanted has come.
func (p *place) set(w wanted) error {
	if err := p.clients.setOwn(slices.Concat(p.addresses, w.addresses)); err != nil {
		return fmt.Errorf("adding a route: %w", err)
	}
	for _, prefix := range w.addresses {
		if prefix.Addr().Is6() && !p.ipv6 {
			return fmt.Errorf("this kernel has no IPv6, so that there can be no address %v", prefix.Addr())
		}
		if !netstack.HasAddress(p.addresses, prefix.Addr()) {
			if err := p.addAddress(prefix.Addr()); err != nil {
				return fmt.Errorf("adding address %v: %w", prefix.Addr(), explainAddress(err))
			}
			// At once, so that it is taken away again if the rest fails.
			p.addresses = append(p.addresses, prefix)
		}
	}
	if mtu := deviceMTU(w.mtu); mtu != p.mtu {
		if err := p.setMTU(mtu); err != nil {
			return err
		}
		p.mtu = mtu
	}
	routes := p.wantedRoutes(w)
	for _, r := range routes {
		if slices.Contains(p.routes, r) {
			continue
		}
		err := p.setRoute(r)
		if errors.Is(err, unix.EACCES) && !r.source.IsValid() {
			continue // IPv6 is off, and the stack has no address of it
		}
		if err != nil {
			return fmt.Errorf("adding a route to %v: %w", r.to, err)
		}
		p.routes = append(slices.DeleteFunc(p.routes, r.same), r)
	}
	var errs []error
	for _, r := range p.routes {
		if !slices.ContainsFunc(routes, r.same) {
			errs = append(errs, p.removeRoute(r))
		}
	}
	p.routes = slices.DeleteFunc(p.routes, func(r route) bool { return !slices.ContainsFunc(routes, r.same) })
	for _, prefix := range p.addresses {
		if !netstack.HasAddress(w.addresses, prefix.Addr()) {
			errs = append(errs, p.removeAddress(prefix.Addr()))
		}
	}
	p.addresses = slices.Clone(w.addresses)
	errs = append(errs, p.clients.setOwn(p.addresses))
	return errors.Join(errs...)
}

// deviceMTU is what the device's MTU is for an MTU of the stack, which TCP and
// UDP have from the routes: probes of the path may be larger.
func deviceMTU(mtu int) int { return max(mtu, netstack.MaxPing) }

// wantedRoutes leads everything into the tunnel, and what comes in to our
// addresses. The source of a connection is the address whose prefix holds its
// destination, or else the first of the family.
func (p *place) wantedRoutes(w wanted) []route {
	var routes []route
	add := func(r route) {
		if !slices.ContainsFunc(routes, r.same) {
			routes = append(routes, r)
		}
	}
	outward := func(family uint8, to netip.Prefix, source netip.Addr) route {
		return route{
			family: family, kind: unix.RTN_UNICAST, table: unix.RT_TABLE_MAIN, to: to, source: source, index: p.index,
			mtu: uint32(w.mtu), congestion: w.congestion,
			// BBR does not answer to marks, which would then only keep queues
			// from dropping.
			ecn: w.congestion != "" && w.congestion != preferredCongestion,
		}
	}
	for _, prefix := range w.addresses {
		add(inboundRoute(prefix.Addr()))
		// A prefix that is one address would be a route to ourselves.
		if !prefix.IsSingleIP() && prefix.Bits() > 0 {
			add(outward(familyOf(prefix.Addr()), prefix.Masked(), prefix.Addr()))
		}
	}
	for _, family := range families {
		if family == unix.AF_INET6 && !p.ipv6 {
			continue
		}
		everything := outward(family, netip.Prefix{}, netip.Addr{})
		for _, prefix := range w.addresses {
			if familyOf(prefix.Addr()) == family {
				everything.source = prefix.Addr()
				break
			}
		}
		add(everything)
	}
	if p.ipv6 {
		// With IPv4 the kernel drops by itself what pretends to come from
		// such an address; with IPv6 it would answer.
		for _, nowhere := range []string{"::/128", "::ffff:0:0/96"} {
			add(route{family: unix.AF_INET6, kind: unix.RTN_BLACKHOLE, table: unix.RT_TABLE_MAIN, to: netip.MustParsePrefix(nowhere)})
		}
	}
	return routes
}

// close ends what the place has but its TUN, which is the device's to close.
func (p *place) close() {
	p.leave()
	p.clients.close()
	p.stocks.close()
	p.namespace.close()
}
