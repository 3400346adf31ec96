package vnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestSegmenterCutsTCP(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	stamps := randomBytes(random, 12)
	base := segment{port: 1, seq: 1<<32 - 3000, ack: 9, window: 77, ttl: 64, id: 1<<16 - 2, tos: 2}
	tests := []struct {
		name   string
		change func(*segment)
		size   int // of the payload
		unit   int
		mtu    int
		want   int // bytes of payload in each packet
	}{
		{"whole segments", func(s *segment) { s.flags = ack }, 5000, 1000, 1420, 1000},
		{"short last one", func(s *segment) { s.flags = ack | psh }, 5001, 1000, 1420, 1000},
		{"odd segments", func(s *segment) { s.flags = ack }, 2345, 333, 1420, 333},
		{"FIN, PSH on the last, CWR on the first", func(s *segment) { s.flags = ack | psh | fin | cwr | ece }, 3500, 1000, 1420, 1000},
		{"options", func(s *segment) { s.flags, s.options = ack, stamps }, 4000, 1000, 1420, 1000},
		{"a smaller MTU", func(s *segment) { s.flags, s.options = ack, stamps }, 4000, 1388, 1280, 1280 - 52},
		{"the MTU just fits", func(s *segment) { s.flags = ack }, 4000, 1380, 1420, 1380},
		{"one segment", func(s *segment) { s.flags = ack | psh | cwr }, 500, 1000, 1420, 1000},
		{"no payload", func(s *segment) { s.flags = ack | fin }, 0, 1000, 1420, 1000},
		{"may be fragmented", func(s *segment) { s.flags, s.mayFrag = ack, true }, 4000, 1000, 1420, 1000},
		{"64 KiB", func(s *segment) { s.flags, s.options = ack, stamps }, maxPacket - 72, 1368, 1420, 1368},
		{"one byte each", func(s *segment) { s.flags = ack | psh }, 100, 1, 1420, 1},
	}
	for _, test := range tests {
		for name, v6 := range map[string]bool{" IPv4": false, " IPv6": true} {
			t.Run(test.name+name, func(t *testing.T) {
				s := base
				s.v6 = v6
				test.change(&s)
				s.payload = randomBytes(random, test.size)
				want := min(test.want, test.mtu-s.hdrLen())
				same(t, segments(t, s.superframe(test.unit), test.mtu), s.cut(want))
			})
		}
	}
}

func TestSegmenterPassesExtensions(t *testing.T) {
	s := segment{
		v6: true, port: 1, ttl: 64, flags: ack | psh, payload: randomBytes(rand.New(rand.NewPCG(5, 5)), 5000),
		// Destination options that say nothing, then TCP.
		first: 60, extensions: append([]byte{6, 1, 1, 12}, make([]byte, 12)...),
	}
	same(t, segments(t, s.superframe(1000), 1420), s.cut(1000))
}

// TestSegmenterKeepsPseudoHeader has a routing header: the checksum is about
// the last destination, which is not the one in the IPv6 header.
func TestSegmenterKeepsPseudoHeader(t *testing.T) {
	s := segment{
		v6: true, port: 1, ttl: 64, flags: ack, payload: randomBytes(rand.New(rand.NewPCG(6, 6)), 3000),
		first: 43, extensions: append([]byte{6, 2, 2, 1, 0, 0, 0, 0}, to6.AsSlice()...),
	}
	frame := s.superframe(1000)
	frame[HeaderLen+25]++ // the destination
	for i, packet := range segments(t, frame, 1420) {
		packet[25]--
		if want := s.cut(1000)[i]; !bytes.Equal(packet, want) {
			t.Fatalf("packet %d is\n% x, want\n% x", i, head(packet), head(want))
		}
	}
}

func TestSegmenterDoesNotTrustHeaderLength(t *testing.T) {
	s := segment{port: 1, ttl: 64, flags: ack, payload: make([]byte, 5000)}
	want := s.cut(1000)
	for _, hdrLen := range []int{0, 20, s.hdrLen() + 700, s.hdrLen() + 5000, 1<<16 - 1} {
		frame := s.superframe(1000)
		binary.NativeEndian.PutUint16(frame[2:], uint16(hdrLen))
		same(t, segments(t, frame, 1420), want)
	}
}

// datagram returns a UDP packet with the checksum of the pseudo-header or, if
// not partial, a complete one.
func datagram(v6 bool, id uint16, payload []byte, partial bool) []byte {
	s := segment{v6: v6, ttl: 64, id: id}
	from, to := s.addresses()
	udp := make(header.UDP, udpLen+len(payload))
	udp.Encode(&header.UDPFields{SrcPort: 5, DstPort: 53, Length: uint16(len(udp))})
	copy(udp[udpLen:], payload)
	pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, from, to, uint16(len(udp)))
	udp.SetChecksum(pseudo)
	if !partial {
		sum := ^checksum.Checksum(udp, 0)
		if sum == 0 {
			sum = 0xffff
		}
		udp.SetChecksum(sum)
	}
	packet := s.build(true)[:s.ipLen()]
	packet = append(packet, udp...)
	if v6 {
		packet[6] = protocolUDP
		header.IPv6(packet).SetPayloadLength(uint16(len(udp)))
		return packet
	}
	ip := header.IPv4(packet)
	packet[9] = protocolUDP
	ip.SetTotalLength(uint16(len(packet)))
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	return packet
}

func TestSegmenterCutsUDP(t *testing.T) {
	payload := randomBytes(rand.New(rand.NewPCG(7, 7)), 3500)
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			sumStart := segment{v6: v6}.ipLen()
			var want [][]byte
			for i := range 4 {
				want = append(want, datagram(v6, 7+uint16(i), payload[i*1000:min(i*1000+1000, 3500)], false))
			}
			frame := rawFrame(1, 5, sumStart+8, 1000, sumStart, 6, datagram(v6, 7, payload, true))
			// Datagrams keep their size even where the MTU is smaller.
			same(t, segments(t, frame, 900), want)
		})
	}
}

// withSum completes the checksum of the bytes from start on.
func withSum(packet []byte, start, at int) []byte {
	binary.BigEndian.PutUint16(packet[start+at:], ^checksum.Checksum(packet[start:], 0))
	return packet
}

// TestSegmenterCutsSingleTCP has a segment that was made for a larger MTU.
func TestSegmenterCutsSingleTCP(t *testing.T) {
	s := segment{port: 1, ttl: 64, flags: ack | psh | cwr, payload: randomBytes(rand.New(rand.NewPCG(4, 4)), 1380)}
	same(t, segments(t, rawFrame(1, 0, 0, 0, 20, 16, s.build(true)), 1419), s.cut(1379))
	s.v6 = true
	same(t, segments(t, rawFrame(1, 0, 0, 0, 40, 16, s.build(true)), 576), s.cut(516))
}

func TestSegmenterPassesSinglePackets(t *testing.T) {
	random := rand.New(rand.NewPCG(8, 8))
	s := segment{port: 1, ttl: 64, flags: ack | psh, payload: randomBytes(random, 777)}
	s6, syn := s, s
	s6.v6 = true
	syn.flags = header.TCPFlagSyn
	// A datagram whose checksum comes out as 0, which UDP writes as ones.
	zero := []byte{0, 0}
	binary.BigEndian.PutUint16(zero, header.UDP(datagram(false, 1, zero, false)[20:]).Checksum())
	ping := make(header.ICMPv6, 500)
	ping.SetType(header.ICMPv6EchoRequest)
	icmp := append(s6.build(true)[:40], ping...)
	icmp[6] = protocolICMPv6
	header.IPv6(icmp).SetPayloadLength(uint16(len(ping)))
	wantICMP := bytes.Clone(icmp)
	header.ICMPv6(wantICMP[40:]).SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: ping, Src: from6, Dst: to6}))
	binary.BigEndian.PutUint16(icmp[42:], header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, from6, to6, uint16(len(ping))))

	tests := []struct {
		name     string
		flags    byte
		sumStart int
		sumAt    int
		packet   []byte
		want     []byte
		mtu      int
	}{
		{"complete TCP", 0, 0, 0, s.build(false), s.build(false), 400},
		{"complete TCP with fields that mean nothing", 0, 20, 16, s.build(false), s.build(false), 400},
		{"checksum known to be valid", 2, 0, 0, s.build(false), s.build(false), 400},
		{"wrong checksum", 0, 0, 0, s.build(true), s.build(true), 400},
		{"partial TCP", 1, 20, 16, s.build(true), s.build(false), 817},
		{"partial TCP over IPv6", 1, 40, 16, s6.build(true), s6.build(false), 837},
		{"partial UDP", 1, 20, 6, datagram(false, 1, s.payload, true), datagram(false, 1, s.payload, false), 400},
		{"partial UDP over IPv6", 1, 40, 6, datagram(true, 1, s.payload, true), datagram(true, 1, s.payload, false), 400},
		{"partial UDP that is 0", 1, 20, 6, datagram(false, 1, zero, true), datagram(false, 1, zero, false), 400},
		{"partial ICMPv6", 1, 40, 2, icmp, wantICMP, 400},
		{"partial SYN", 1, 20, 16, syn.build(true), syn.build(false), 400},
		{"partial sum of something else", 1, 24, 16, s.build(true), withSum(s.build(true), 24, 16), 400},
		{"no IP at all", 0, 0, 0, []byte{1}, []byte{1}, 400},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			frame := rawFrame(test.flags, 0, 0, 0, test.sumStart, test.sumAt, test.packet)
			same(t, segments(t, frame, test.mtu), [][]byte{test.want})
		})
	}
	if sum := header.UDP(datagram(false, 1, zero, false)[20:]).Checksum(); sum != 0xffff {
		t.Errorf("the datagram for the checksum of 0 has %#x", sum)
	}
}

func TestSegmenterRefuses(t *testing.T) {
	s := segment{port: 1, ttl: 64, flags: ack, payload: make([]byte, 3000)}
	s6 := s
	s6.v6 = true
	tcp4, tcp6, udp := s.build(true), s6.build(true), datagram(false, 1, s.payload, true)
	change := func(packet []byte, at int, value byte) []byte {
		packet = bytes.Clone(packet)
		packet[at] = value
		return packet
	}
	tests := []struct {
		name  string
		frame []byte
		mtu   int
		other bool // than a malformed frame
	}{
		{"nothing", nil, 1420, false},
		{"half a header", make([]byte, 5), 1420, false},
		{"only a header", make([]byte, HeaderLen), 1420, false},
		{"unknown kind", rawFrame(1, 3, 28, 1000, 20, 6, udp), 1420, false},
		{"ECN of nothing known", rawFrame(1, 0x82, 40, 1000, 20, 16, tcp4), 1420, false},
		{"IPv4 as IPv6", rawFrame(1, 4, 40, 1000, 20, 16, tcp4), 1420, false},
		{"IPv6 as IPv4", rawFrame(1, 1, 60, 1000, 40, 16, tcp6), 1420, false},
		{"UDP over neither", rawFrame(1, 5, 28, 1000, 20, 6, change(udp, 0, 0x25)), 1420, false},
		{"no partial checksum", rawFrame(0, 1, 40, 1000, 20, 16, tcp4), 1420, false},
		{"segments of 0", rawFrame(1, 1, 40, 0, 20, 16, tcp4), 1420, false},
		{"one byte of IPv4", rawFrame(1, 1, 40, 1000, 20, 16, tcp4[:1]), 1420, false},
		{"IPv4 header too short", rawFrame(1, 1, 40, 1000, 16, 16, change(change(tcp4, 0, 0x44), 28, 0x50)), 1420, false},
		{"checksum not from the end of the IPv4 header", rawFrame(1, 1, 40, 1000, 24, 16, change(tcp4, 36, 0x50)), 1420, false},
		{"IPv4 cut off", rawFrame(1, 1, 40, 1000, 20, 16, tcp4[:2000]), 1420, false},
		{"IPv6 cut off", rawFrame(1, 4, 60, 1000, 40, 16, tcp6[:2000]), 1420, false},
		{"IPv6 header cut off", rawFrame(1, 4, 60, 1000, 40, 16, tcp6[:39]), 1420, false},
		{"checksum from within the IPv6 header", rawFrame(1, 4, 60, 1000, 39, 16, change(tcp6, 51, 0x50)), 1420, false},
		{"TCP beyond the packet", rawFrame(1, 4, 60, 1000, 65535, 16, tcp6), 1420, false},
		{"TCP header too short", rawFrame(1, 1, 40, 1000, 20, 16, change(tcp4, 32, 0x40)), 1420, false},
		{"TCP options beyond the packet", rawFrame(1, 4, 60, 1000, len(tcp6)-20, 16, change(tcp6, len(tcp6)-8, 0xf0)), 1420, false},
		{"TCP checksum elsewhere", rawFrame(1, 1, 40, 1000, 20, 6, tcp4), 1420, false},
		{"UDP checksum elsewhere", rawFrame(1, 5, 28, 1000, 20, 16, udp), 1420, false},
		{"UDP beyond the packet", rawFrame(1, 5, 28, 1000, len(tcp6)-4, 6, tcp6), 1420, false},
		{"checksum beyond the packet", rawFrame(1, 0, 0, 0, 20, 16, tcp4[:37]), 1420, false},
		{"checksum far beyond the packet", rawFrame(1, 0, 0, 0, 65535, 65535, tcp4), 1420, false},
		{"checksum at the start of its range", rawFrame(1, 0, 0, 0, 20, 0, tcp4), 1420, false},
		{"MTU of the headers", rawFrame(1, 1, 40, 1000, 20, 16, tcp4), 40, true},
		{"negative MTU", rawFrame(1, 1, 40, 1000, 20, 16, tcp4), -1, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var s Segmenter
			// A frame that was there before must not come back.
			if err := s.Start(rawFrame(0, 0, 0, 0, 0, 0, tcp4), 1420); err != nil {
				t.Fatal(err)
			}
			err := s.Start(test.frame, test.mtu)
			if err == nil || errors.Is(err, ErrMalformed) == test.other {
				t.Errorf("the error is %v", err)
			}
			if s.Active() || s.Next(make([]byte, 4096)) != 0 {
				t.Error("the segmenter is active")
			}
		})
	}
}

func TestSegmenterDropsWhatDoesNotFit(t *testing.T) {
	s := segment{port: 1, ttl: 64, flags: ack, payload: make([]byte, 3000)}
	for name, frame := range map[string][]byte{
		"superpacket": s.superframe(1000),
		"single":      rawFrame(1, 0, 0, 0, 20, 16, s.build(true)),
	} {
		t.Run(name, func(t *testing.T) {
			var cutter Segmenter
			if err := cutter.Start(frame, 1420); err != nil {
				t.Fatal(err)
			}
			if n := cutter.Next(make([]byte, 1039)); n != 0 || cutter.Active() {
				t.Errorf("%d bytes were written, active: %v", n, cutter.Active())
			}
		})
	}
}
