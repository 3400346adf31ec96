package tunnel

import (
	"net/netip"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	// stalledAt is how many packets for a destination may have gone into
	// wireguard-go since the last one left. While they leave there are no more
	// than a window and a batch.
	stalledAt = windowSize + 128

	// destinationsMax bounds the destinations that are remembered.
	destinationsMax = 1024
)

// stalls keeps packets for peers that cannot be reached from piling up.
//
// wireguard-go lets packets wait for a handshake, for each peer the batches of
// the last 128 reads, and each packet has a buffer of 64 KiB: a flood of
// datagrams to a relayed port of a home that is away took 1 GiB. Of a
// destination from which nothing leaves one packet of each batch goes in, which
// is what it takes to begin a handshake, so that no more than 128 wait, as in
// Linux's own WireGuard (MAX_STAGED_PACKETS).
//
// That is for peers without a session alone. Where there is one, a machine that
// is slow to send looks the same, and there TCP shall not lose packets.
type stalls struct {
	// absent tells whether nobody at an address has a session.
	absent func(netip.Addr) bool

	mu           sync.Mutex
	destinations map[netip.Addr]*destination

	// marks are the last packets of each destination in a batch, by their
	// buffers.
	marks map[uintptr]*destination

	// batch counts, fresh is how many buffers have been replaced since the
	// last one, and touched are its destinations.
	batch   uint64
	fresh   int
	touched []*destination

	// dropped counts packets.
	dropped uint64
}

// destination is where packets go inside the tunnel.
type destination struct {
	absent bool   // at the last look
	inside int    // since the last one left
	batch  uint64 // the last one in which it had a packet that went in
	last   uintptr
}

func newStalls(absent func(netip.Addr) bool) *stalls {
	return &stalls{absent: absent, destinations: make(map[netip.Addr]*destination), marks: make(map[uintptr]*destination)}
}

// enter counts the first n packets of a batch, which begin at offset, and makes
// the sizes of those that are to be dropped 0.
func (s *stalls) enter(bufs [][]byte, sizes []int, n, offset int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// What has been in these buffers is gone.
	for _, buf := range bufs[:min(s.fresh, len(bufs))] {
		delete(s.marks, bufferOf(buf))
	}
	s.fresh = n
	s.batch++
	var address netip.Addr
	var d *destination
	for i := range n {
		to, ok := destinationOf(bufs[i][offset : offset+sizes[i]])
		if !ok {
			continue
		}
		if d == nil || to != address {
			address, d = to, s.of(to)
		}
		if d.absent && d.inside >= stalledAt && d.batch == s.batch {
			sizes[i] = 0
			s.dropped++
			continue
		}
		if d.batch != s.batch {
			d.batch = s.batch
			s.touched = append(s.touched, d)
		}
		d.inside++
		d.last = bufferOf(bufs[i])
	}
	for _, d := range s.touched {
		s.marks[d.last] = d
	}
	s.touched = s.touched[:0]
}

// leave looks at packets that wireguard-go sends.
func (s *stalls) leave(bufs [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, buf := range bufs {
		buffer := bufferOf(buf)
		if d := s.marks[buffer]; d != nil {
			d.inside = 0
			delete(s.marks, buffer)
		}
	}
}

// of returns what is known of a destination.
func (s *stalls) of(address netip.Addr) *destination {
	d := s.destinations[address]
	if d != nil {
		return d
	}
	if len(s.destinations) >= destinationsMax {
		for known, d := range s.destinations {
			if d.inside == 0 {
				delete(s.destinations, known)
			}
		}
		if len(s.destinations) >= destinationsMax {
			clear(s.destinations)
		}
	}
	d = &destination{absent: s.absent(address)}
	s.destinations[address] = d
	return d
}

// look asks anew who is absent.
func (s *stalls) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for address, d := range s.destinations {
		d.absent = s.absent(address)
	}
}

// destinationOf is where a packet goes.
func destinationOf(packet []byte) (netip.Addr, bool) {
	if len(packet) < ipv4.HeaderLen {
		return netip.Addr{}, false
	}
	switch packet[0] >> 4 {
	case ipv4.Version:
		return netip.AddrFrom4([4]byte(packet[16:20])), true
	case ipv6.Version:
		if len(packet) >= ipv6.HeaderLen {
			return netip.AddrFrom16([16]byte(packet[24:40])), true
		}
	}
	return netip.Addr{}, false
}
