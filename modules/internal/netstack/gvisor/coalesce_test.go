package gvisor

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// collector is a dispatcher that keeps what it gets.
type collector struct{ packets [][]byte }

func (c *collector) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	view := pkt.ToView()
	c.packets = append(c.packets, bytes.Clone(view.AsSlice()))
	view.Release()
}

func (c *collector) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// join runs one batch through a coalescer.
func join(t *testing.T, packets [][]byte) [][]byte {
	t.Helper()
	var c coalescer
	var got collector
	c.dispatcher = &got
	for _, packet := range packets {
		if !c.add(packet) {
			t.Fatalf("a packet of %d bytes was not taken", len(packet))
		}
	}
	c.flush()
	return got.packets
}

// streams puts the payloads of each flow together, in the order of arrival.
// Sequence numbers must follow each other.
func streams(t *testing.T, packets [][]byte) map[uint16][]byte {
	t.Helper()
	flows := map[uint16][]byte{}
	next := map[uint16]uint32{}
	for _, packet := range packets {
		ipLen := header.IPv4MinimumSize
		if packet[0]>>4 == header.IPv6Version {
			ipLen = header.IPv6MinimumSize
		} else if !header.IPv4(packet).IsValid(len(packet)) || !header.IPv4(packet).IsChecksumValid() {
			t.Fatal("a joined packet has a bad IP header")
		}
		if network, _, _, ok := plain(packet); !ok {
			t.Fatalf("a joined packet of protocol %#x has a bad length", network)
		}
		tcp := header.TCP(packet[ipLen:])
		port, data := tcp.SourcePort(), tcp[tcp.DataOffset():]
		if seq, seen := next[port]; seen && tcp.SequenceNumber() != seq {
			t.Fatalf("flow %d goes on at %d, want %d", port, tcp.SequenceNumber(), seq)
		}
		next[port] = tcp.SequenceNumber() + uint32(len(data))
		flows[port] = append(flows[port], data...)
	}
	return flows
}

func TestCoalescerJoins(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	ack := header.TCPFlags(header.TCPFlagAck)
	for _, v6 := range []bool{false, true} {
		one := superpacket{v6: v6, mss: 1000, port: 1, seq: 1<<32 - 3000, flags: ack | header.TCPFlagPsh, payload: randomBytes(random, 9500)}
		two := superpacket{v6: v6, mss: 1000, port: 2, flags: ack, payload: randomBytes(random, 5000)}
		a, b := one.cut(1420), two.cut(1420)

		// One flow becomes one packet, with the flags of its last segment.
		got := join(t, a)
		if len(got) != 1 {
			t.Fatalf("IPv6=%v: ten segments became %d packets", v6, len(got))
		}
		tcp := header.TCP(got[0][one.ipLen():])
		if !bytes.Equal(tcp[tcp.DataOffset():], one.payload) || tcp.Flags() != one.flags || tcp.SequenceNumber() != one.seq {
			t.Errorf("IPv6=%v: the joined packet is not what was cut", v6)
		}

		// Two flows take turns.
		var mixed [][]byte
		for i := range a {
			mixed = append(mixed, a[i])
			if i < len(b) {
				mixed = append(mixed, b[i])
			}
		}
		got = join(t, mixed)
		flows := streams(t, got)
		if len(got) != 2 || !bytes.Equal(flows[1], one.payload) || !bytes.Equal(flows[2], two.payload) {
			t.Errorf("IPv6=%v: two flows became %d packets", v6, len(got))
		}
	}
}

// TestCoalescerKeepsApart has pairs of packets that must not become one.
func TestCoalescerKeepsApart(t *testing.T) {
	ack := header.TCPFlags(header.TCPFlagAck)
	base := superpacket{mss: 1000, port: 1, seq: 100, ack: 5, flags: ack, payload: make([]byte, 1000)}
	follow := base
	follow.seq += 1000
	change := func(f func(*superpacket)) superpacket {
		s := follow
		f(&s)
		return s
	}
	raw := func(s superpacket, f func([]byte)) []byte {
		packet := s.cut(1420)[0]
		f(packet)
		return packet
	}
	same := func([]byte) {}
	tests := []struct {
		name          string
		first, second []byte
	}{
		{"gap", raw(base, same), raw(change(func(s *superpacket) { s.seq++ }), same)},
		{"again", raw(base, same), raw(base, same)},
		{"other acknowledgement", raw(base, same), raw(change(func(s *superpacket) { s.ack++ }), same)},
		{"other options", raw(base, same), raw(change(func(s *superpacket) { s.options = []byte{1, 1, 1, 1} }), same)},
		{"larger", raw(base, same), raw(change(func(s *superpacket) { s.payload, s.mss = make([]byte, 1001), 1300 }), same)},
		{"FIN", raw(base, same), raw(change(func(s *superpacket) { s.flags |= header.TCPFlagFin }), same)},
		{"URG", raw(base, same), raw(change(func(s *superpacket) { s.flags |= header.TCPFlagUrg }), same)},
		{"pure acknowledgement", raw(base, same), raw(change(func(s *superpacket) { s.payload = nil }), same)},
		{"after PSH", raw(base, func(p []byte) { p[33] |= byte(header.TCPFlagPsh) }), raw(follow, same)},
		{"after a short one", raw(change(func(s *superpacket) { s.seq, s.payload = 100, make([]byte, 500) }), same), raw(change(func(s *superpacket) { s.seq = 600 }), same)},
		{"other time to live", raw(base, same), raw(follow, func(p []byte) { p[8]-- })},
		{"congestion experienced", raw(base, same), raw(follow, func(p []byte) { p[1] |= 3 })},
		{"other window", raw(base, same), raw(follow, func(p []byte) { p[34]++ })},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := join(t, [][]byte{test.first, test.second})
			if len(got) != 2 || !bytes.Equal(got[0], test.first) || !bytes.Equal(got[1], test.second) {
				t.Errorf("became %d packets, or in another order", len(got))
			}
		})
	}
}

// TestCoalescerManyFlows has more flows in a batch than runs.
func TestCoalescerManyFlows(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	want := map[uint16][]byte{}
	queues := map[uint16][][]byte{}
	for port := range uint16(3 * maxRuns) {
		s := superpacket{v6: port%2 == 0, mss: 900, port: port, flags: header.TCPFlagAck, payload: randomBytes(random, 900*4)}
		want[port] = s.payload
		queues[port] = s.cut(1420)
	}
	var batch [][]byte
	for len(queues) > 0 {
		port := uint16(random.IntN(3 * maxRuns))
		if q, ok := queues[port]; ok {
			batch = append(batch, q[0])
			if queues[port] = q[1:]; len(q) == 1 {
				delete(queues, port)
			}
		}
	}
	for port, got := range streams(t, join(t, batch)) {
		if !bytes.Equal(got, want[port]) {
			t.Errorf("flow %d differs", port)
		}
	}
}

func TestPlain(t *testing.T) {
	good := superpacket{mss: 1000, payload: make([]byte, 100), flags: header.TCPFlagAck}.cut(1420)[0]
	change := func(f func([]byte)) []byte {
		p := bytes.Clone(good)
		f(p)
		return p
	}
	tests := []struct {
		name string
		in   []byte
		want bool
	}{
		{"TCP", good, true},
		{"empty", nil, false},
		{"cut short", good[:30], false},
		{"longer than it says", append(bytes.Clone(good), 0), false},
		{"options", change(func(p []byte) { p[0] = 0x46 }), false},
		{"first fragment", change(func(p []byte) { p[6] = 0x20 }), false},
		{"later fragment", change(func(p []byte) { p[7] = 1 }), false},
		{"ICMP", change(func(p []byte) { p[9] = 1 }), false},
		{"version", change(func(p []byte) { p[0] = 0x55 }), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, _, _, got := plain(test.in); got != test.want {
				t.Errorf("plain is %v", got)
			}
		})
	}
}

// FuzzCoalescer looks for packets that make the coalescer panic.
func FuzzCoalescer(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		f.Add(superpacket{v6: v6, mss: 100, payload: make([]byte, 100), flags: header.TCPFlagAck}.cut(1420)[0], 60)
	}
	f.Fuzz(func(t *testing.T, packet []byte, at int) {
		var c coalescer
		c.dispatcher = &collector{}
		c.add(packet)
		if at >= 0 && at < len(packet) {
			c.add(packet[:at])
			changed := bytes.Clone(packet)
			changed[at]++
			c.add(changed)
		}
		c.flush()
	})
}
