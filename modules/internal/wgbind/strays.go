package wgbind

import (
	"net/netip"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	transportType = 4

	// transportMin is a keepalive, which is the smallest message of a session
	// (whitepaper, section 5.4.6).
	transportMin = 32
)

// strays has where messages of sessions come from while somebody asks for that.
type strays struct {
	// known are the addresses that do not matter. It is nil while nobody asks.
	known atomic.Pointer[map[netip.AddrPort]bool]

	from chan netip.AddrPort
}

// WantStray asks for the next message of a session that comes from none of the known
// addresses. A nil map takes the question back.
func (b *Bind) WantStray(known map[netip.AddrPort]bool) {
	if known == nil {
		b.strays.known.Store(nil)
		return
	}
	b.strays.known.Store(&known)
}

// Stray has where it came from: an end that believes in a session which this one may
// have lost. What is in it has not been authenticated.
func (b *Bind) Stray() <-chan netip.AddrPort { return b.strays.from }

// watch wraps receive functions so that strays are seen.
func (s *strays) watch(receives []conn.ReceiveFunc) []conn.ReceiveFunc {
	watched := make([]conn.ReceiveFunc, len(receives))
	for i, receive := range receives {
		watched[i] = func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
			n, err := receive(packets, sizes, endpoints)
			for j := 0; j < n; j++ {
				known := s.known.Load()
				if known == nil {
					break
				}
				s.received(known, packets[j][:sizes[j]], endpoints[j])
			}
			return n, err
		}
	}
	return watched
}

func (s *strays) received(known *map[netip.AddrPort]bool, packet []byte, endpoint conn.Endpoint) {
	if len(packet) < transportMin || packet[0] != transportType {
		return
	}
	std, ok := endpoint.(*conn.StdNetEndpoint)
	if !ok {
		return
	}
	from := netip.AddrPortFrom(std.Addr().Unmap(), std.Port())
	if (*known)[from] || !s.known.CompareAndSwap(known, nil) {
		return
	}
	select {
	case s.from <- from:
	default: // the former has not been read yet
	}
}
