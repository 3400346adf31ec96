package tunnel

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// silence is for how long nothing may come from a host before what TCP
	// sends to it is held: TCP's own least time (RFC 6298 as Linux has it).
	silence = 200 * time.Millisecond

	// heldHosts and heldSegments bound the hosts that are known and the
	// segments that are held, in all.
	heldHosts    = 1024
	heldSegments = 2048
)

// repeater sends again what TCP has sent into nothing, the moment that home is
// heard again.
//
// While home's line is another one and its WireGuard has not spoken from there,
// every connection's TCP waits twice as long after each attempt: after 7 s
// without an answer it tries next after another 6. Home's keepalive ends the
// one wait, this ends the other. A segment that comes twice is none of TCP's
// troubles, and one is held only once TCP itself has sent it a second time.
type repeater struct {
	mu       sync.Mutex
	start    time.Time
	hosts    map[netip.Addr]*heldHost
	segments int      // held
	pending  [][]byte // to leave with the next batch

	// wake makes a batch, by a packet to a host.
	wake func(netip.Addr)
}

// heldHost is an address inside the tunnel, at which a peer or somebody behind
// it is.
type heldHost struct {
	heard time.Duration
	held  map[heldFlow]*heldSegment // nil if none
}

// heldFlow is a TCP connection to a host.
type heldFlow struct {
	source netip.Addr
	ports  uint32
}

// heldSegment is the oldest unanswered segment of a connection.
type heldSegment struct {
	packet   []byte
	sequence uint32
	times    int // that TCP has sent it
}

func newRepeater(wake func(netip.Addr)) *repeater {
	return &repeater{start: time.Now(), hosts: make(map[netip.Addr]*heldHost), wake: wake}
}

// host returns what is known of an address. r.mu is held.
func (r *repeater) host(address netip.Addr, now time.Duration) *heldHost {
	h := r.hosts[address]
	if h != nil {
		return h
	}
	if len(r.hosts) >= heldHosts {
		clear(r.hosts)
		r.segments = 0
	}
	h = &heldHost{heard: now - 2*silence}
	r.hosts[address] = h
	return h
}

// sent looks at the first n packets of a batch that leaves, and returns how
// many there are when what is to be sent again has been added.
func (r *repeater) sent(bufs [][]byte, sizes []int, n, offset int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Since(r.start)
	var address netip.Addr
	var h *heldHost
	for i := range n {
		packet := bufs[i][offset : offset+sizes[i]]
		to, ok := destinationOf(packet)
		if !ok {
			continue
		}
		if h == nil || to != address {
			address, h = to, r.host(to, now)
		}
		if now-h.heard >= silence {
			r.hold(h, packet)
		}
	}
	for n < len(bufs) && len(r.pending) > 0 {
		packet := r.pending[0]
		r.pending = r.pending[1:]
		if offset+len(packet) <= len(bufs[n]) {
			sizes[n] = copy(bufs[n][offset:], packet)
			n++
		}
	}
	return n
}

// hold keeps the segment that a connection waits for an answer to. r.mu is held.
func (r *repeater) hold(h *heldHost, packet []byte) {
	s, ok := segmentOf(packet)
	if !ok || s.length == 0 {
		return
	}
	flow := heldFlow{s.source, s.ports}
	held := h.held[flow]
	switch {
	case held == nil:
		if r.segments >= heldSegments {
			return
		}
		if h.held == nil {
			h.held = make(map[heldFlow]*heldSegment)
		}
		held = new(heldSegment)
		h.held[flow] = held
		r.segments++
	case s.sequence == held.sequence:
		held.times++
	case int32(s.sequence-held.sequence) > 0:
		return // what waits is older
	default:
		held.times = 1 // TCP goes back to what is older
	}
	held.packet = append(held.packet[:0], packet...)
	held.sequence = s.sequence
}

// received looks at packets that have come from peers.
func (r *repeater) received(bufs [][]byte, offset int) {
	r.mu.Lock()
	now := time.Since(r.start)
	var address, waking netip.Addr
	var h *heldHost
	for _, buf := range bufs {
		if offset >= len(buf) {
			continue
		}
		packet := buf[offset:]
		from, ok := sourceOf(packet)
		if !ok {
			continue
		}
		if h == nil || from != address {
			address, h = from, r.host(from, now)
			h.heard = now
		}
		if h.held == nil {
			continue
		}
		if s, ok := segmentOf(packet); ok {
			// It answers, or gives up.
			flow := heldFlow{s.destination, s.ports<<16 | s.ports>>16}
			if h.held[flow] != nil {
				delete(h.held, flow)
				r.segments--
			}
		}
		if r.repeat(h) {
			waking = from
		}
	}
	r.mu.Unlock()
	if waking.IsValid() {
		r.wake(waking)
	}
}

// heard says that a peer, whose addresses inside the tunnel are those for which
// is says so, has been heard after a silence.
func (r *repeater) heard(is func(netip.Addr) bool) {
	r.mu.Lock()
	var waking netip.Addr
	for address, h := range r.hosts {
		if h.held != nil && is(address) && r.repeat(h) {
			waking = address
		}
	}
	r.mu.Unlock()
	if waking.IsValid() {
		r.wake(waking)
	}
}

// repeat makes what is held for a host leave, and says whether there is
// something. r.mu is held.
func (r *repeater) repeat(h *heldHost) bool {
	before := len(r.pending)
	for _, held := range h.held {
		if held.times > 0 && len(r.pending) < heldSegments {
			r.pending = append(r.pending, held.packet)
		}
	}
	r.segments -= len(h.held)
	h.held = nil
	return len(r.pending) > before
}

// segment is what a TCP segment says.
type segment struct {
	source, destination netip.Addr
	ports               uint32 // the source's and the destination's
	sequence            uint32
	length              int // in sequence numbers: with SYN and FIN
}

// The header of TCP (RFC 9293, section 3.1).
const (
	tcpProtocol = 6
	tcpHeader   = 20
	tcpFIN      = 0x01
	tcpSYN      = 0x02
)

// segmentOf parses a TCP segment. It is false for everything else, fragments
// and IPv6 packets with extension headers among it.
func segmentOf(packet []byte) (s segment, ok bool) {
	if len(packet) < ipv4.HeaderLen {
		return s, false
	}
	at, end := 0, 0
	switch packet[0] >> 4 {
	case ipv4.Version:
		at, end = int(packet[0]&0xf)*4, int(binary.BigEndian.Uint16(packet[2:]))
		if packet[protocolAt] != tcpProtocol || binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 {
			return s, false
		}
		s.source, s.destination = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
	case ipv6.Version:
		if len(packet) < ipv6.HeaderLen || packet[nextHeaderAt] != tcpProtocol {
			return s, false
		}
		at, end = ipv6.HeaderLen, ipv6.HeaderLen+int(binary.BigEndian.Uint16(packet[4:]))
		s.source, s.destination = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	default:
		return s, false
	}
	if at < ipv4.HeaderLen || end > len(packet) || at+tcpHeader > end {
		return s, false
	}
	tcp := packet[at:end]
	s.ports = binary.BigEndian.Uint32(tcp)
	s.sequence = binary.BigEndian.Uint32(tcp[4:])
	s.length = len(tcp) - int(tcp[12]>>4)*4
	if tcp[13]&(tcpSYN|tcpFIN) != 0 {
		s.length++
	}
	return s, s.length >= 0
}

// sourceOf is where a packet comes from.
func sourceOf(packet []byte) (netip.Addr, bool) {
	if len(packet) < ipv4.HeaderLen {
		return netip.Addr{}, false
	}
	switch packet[0] >> 4 {
	case ipv4.Version:
		return netip.AddrFrom4([4]byte(packet[12:16])), true
	case ipv6.Version:
		if len(packet) >= ipv6.HeaderLen {
			return netip.AddrFrom16([16]byte(packet[8:24])), true
		}
	}
	return netip.Addr{}, false
}

// repeatingDevice is a device whose packets a repeater sees.
type repeatingDevice struct {
	tun.Device
	repeater *repeater
}

// Read implements tun.Device.
func (d *repeatingDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.Device.Read(bufs, sizes, offset)
	if err != nil {
		return n, err
	}
	return d.repeater.sent(bufs, sizes, n, offset), nil
}

// Write implements tun.Device.
func (d *repeatingDevice) Write(bufs [][]byte, offset int) (int, error) {
	d.repeater.received(bufs, offset)
	return d.Device.Write(bufs, offset)
}
