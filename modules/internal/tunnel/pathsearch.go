package tunnel

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

const (
	// searchAttempts is how often each size is tried: on a line that loses one
	// packet in ten, a size that passes is given up once in a hundred times.
	searchAttempts = 3

	// searchWidth is how many sizes are tried at once. Each that does not pass
	// costs a wait, so it should be few waits rather than few packets.
	searchWidth = 12

	// firstWait is how long an attempt waits while the path's round trip is
	// not known.
	firstWait = time.Second

	// leastWait and mostWait bound how long an attempt waits for an answer
	// otherwise: twice the round trip. The answer to an earlier attempt
	// counts as well, so that three attempts wait for six round trips.
	leastWait = 500 * time.Millisecond
	mostWait  = 2 * time.Second

	// spacing keeps the sizes of an attempt apart, and so in ascending order.
	// wireguard-go makes one UDP GSO packet of datagrams that it has at hand,
	// of equal size but for a smaller last one, and where nothing takes that
	// apart before the link that is too narrow (a router on the same machine,
	// say) the small one is dropped with the large ones.
	spacing = time.Millisecond
)

// usualSizes are what the usual lines carry, in bytes of the inner packet:
// 1400 (mobile), 1420, 1440, 1452 (DS-Lite over PPPoE), 1460 (DS-Lite), 1472,
// 1480 (6in4), 1492 (PPPoE) and 1500 (Ethernet), less 60 for an outer packet
// over IPv4 or 80 over IPv6. They ascend.
var usualSizes = []int{1320, 1340, 1360, 1372, 1380, 1392, 1400, 1412, 1420}

// search finds out what a path carries.
type search struct {
	// ping has an echo request of a size answered, or fails when ctx is done.
	ping func(ctx context.Context, remote netip.Addr, size int) error

	// targets are the addresses of the peer that may answer.
	targets []netip.Addr

	// target is the one that does, once one has.
	target netip.Addr
	// wait is how long an attempt waits for an answer.
	wait time.Duration
}

// run returns the size of the largest packet that the path carries, at least
// netstack.MinMTU and at most netstack.MaxPing, or 0 if nothing was answered.
func (s *search) run(ctx context.Context) int {
	if !s.findTarget(ctx) {
		return 0
	}
	return s.above(ctx, netstack.MinMTU, true)
}

// above is the size of the largest packet that the path carries if base is
// known to pass. If exact is false, and the path carries none of the usual
// sizes above base, what lies between is not tried.
func (s *search) above(ctx context.Context, base int, exact bool) int {
	sizes := slices.DeleteFunc(slices.Clone(usualSizes), func(size int) bool { return size <= base })
	if len(sizes) == 0 {
		return base
	}
	best := max(base, s.volley(ctx, sizes))
	if best == base && !exact {
		return base
	}
	fails := netstack.MaxPing + 1
	for _, size := range sizes {
		if size > best {
			fails = min(fails, size)
		}
	}
	for best+1 < fails && ctx.Err() == nil {
		sizes := between(best, fails)
		best = max(best, s.volley(ctx, sizes))
		for _, size := range sizes {
			if size > best {
				fails = min(fails, size)
			}
		}
	}
	return best
}

// between returns up to searchWidth sizes that divide what lies between low
// and high.
func between(low, high int) (sizes []int) {
	gap := high - low
	parts := min(gap, searchWidth+1)
	for i := 1; i < parts; i++ {
		sizes = append(sizes, low+i*gap/parts)
	}
	return sizes
}

// carries tells whether a packet of a size still passes to the target.
func (s *search) carries(ctx context.Context, size int) bool {
	return s.volley(ctx, []int{size}) == size
}

// volley tries sizes, which ascend, together and some times over, and returns
// the largest that was answered, or 0. It returns early when that is the
// largest of all.
func (s *search) volley(ctx context.Context, sizes []int) (best int) {
	ctx, cancel := context.WithCancel(ctx)
	var pings sync.WaitGroup
	defer pings.Wait()
	defer cancel()
	largest := sizes[len(sizes)-1]
	answered := make(chan int, searchAttempts*len(sizes))
	for range searchAttempts {
		for _, size := range sizes {
			if size <= best || ctx.Err() != nil {
				continue
			}
			pings.Go(func() {
				if s.ping(ctx, s.target, size) == nil {
					answered <- size
				}
			})
			select {
			case <-time.After(spacing):
			case <-ctx.Done():
			}
		}
		for timeout := time.After(s.wait); timeout != nil && ctx.Err() == nil; {
			select {
			case size := <-answered:
				if best = max(best, size); best == largest {
					return best
				}
			case <-timeout:
				timeout = nil
			case <-ctx.Done():
			}
		}
	}
	return best
}

// findTarget finds an address of the peer that answers, and how long its
// answer takes.
func (s *search) findTarget(ctx context.Context) bool {
	if len(s.targets) == 0 {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	var pings sync.WaitGroup
	defer pings.Wait()
	defer cancel()
	type answer struct {
		target netip.Addr
		after  time.Duration
	}
	answered := make(chan answer, searchAttempts*len(s.targets))
	for range searchAttempts {
		for _, target := range s.targets {
			pings.Go(func() {
				begun := time.Now()
				if s.ping(ctx, target, netstack.MinMTU) == nil {
					answered <- answer{target, time.Since(begun)}
				}
			})
		}
		select {
		case first := <-answered:
			s.target, s.wait = first.target, waitFor(first.after)
			return true
		case <-time.After(firstWait):
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// waitFor is how long an attempt waits on a path with a round trip.
func waitFor(roundTrip time.Duration) time.Duration {
	return min(max(2*roundTrip, leastWait), mostWait)
}
