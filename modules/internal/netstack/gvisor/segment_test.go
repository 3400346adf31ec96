package gvisor

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

var (
	testFrom4, testTo4 = tcpip.AddrFrom4([4]byte{10, 77, 0, 1}), tcpip.AddrFrom4([4]byte{10, 77, 0, 2})
	testFrom6, testTo6 = tcpip.AddrFrom16([16]byte{0xfd, 15: 1}), tcpip.AddrFrom16([16]byte{0xfd, 15: 2})
)

// superpacket describes a packet as the stack sends it.
type superpacket struct {
	v6       bool
	port     uint16
	seq, ack uint32
	flags    header.TCPFlags
	options  []byte
	payload  []byte
	mss      int
	mayFrag  bool
}

// build makes the packet of the stack, with a payload in several pieces.
func (s superpacket) build() *stack.PacketBuffer {
	var payload buffer.Buffer
	for rest := s.payload; len(rest) > 0; {
		n := min(len(rest), 1000+len(rest)/3)
		payload.Append(buffer.NewViewWithData(rest[:n]))
		rest = rest[n:]
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv6MinimumSize + header.TCPHeaderMaximumSize,
		Payload:            payload,
	})
	tcp := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + len(s.options)))
	tcp.Encode(&header.TCPFields{
		SrcPort: s.port, DstPort: 80, SeqNum: s.seq, AckNum: s.ack, WindowSize: 1000, Flags: s.flags,
		DataOffset: uint8(header.TCPMinimumSize + len(s.options)),
	})
	copy(tcp[header.TCPMinimumSize:], s.options)
	from, to := s.addresses()
	tcp.SetChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, from, to, uint16(pkt.Size())))
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(s.mss)}
	if s.v6 {
		pkt.GSOOptions.Type = stack.GSOTCPv6
		size := pkt.Size()
		header.IPv6(pkt.NetworkHeader().Push(header.IPv6MinimumSize)).Encode(&header.IPv6Fields{
			PayloadLength: uint16(size), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64, SrcAddr: from, DstAddr: to,
		})
		pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
		return pkt
	}
	ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
	fields := header.IPv4Fields{
		TotalLength: uint16(pkt.Size()), ID: 7, TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: from, DstAddr: to,
		Flags: header.IPv4FlagDontFragment,
	}
	if s.mayFrag {
		fields.Flags = 0
	}
	ip.Encode(&fields)
	ip.SetChecksum(^ip.CalculateChecksum())
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	return pkt
}

func (s superpacket) addresses() (from, to tcpip.Address) {
	if s.v6 {
		return testFrom6, testTo6
	}
	return testFrom4, testTo4
}

func (s superpacket) ipLen() int {
	if s.v6 {
		return header.IPv6MinimumSize
	}
	return header.IPv4MinimumSize
}

// cut returns the packets that the segmenter makes of s.
func (s superpacket) cut(mtu int) [][]byte {
	var packets [][]byte
	var segment segmenter
	segment.start(s.build(), mtu)
	for segment.active() {
		b := make([]byte, 1<<16)
		packets = append(packets, b[:segment.next(b)])
	}
	return packets
}

// checkSegments looks at every field that differs between the segments of s.
func (s superpacket) check(t *testing.T, packets [][]byte, mtu int) {
	t.Helper()
	from, to := s.addresses()
	var payload []byte
	for i, packet := range packets {
		last := i == len(packets)-1
		if len(packet) > mtu {
			t.Fatalf("segment %d has %d bytes, MTU is %d", i, len(packet), mtu)
		}
		if s.v6 {
			if got := int(header.IPv6(packet).PayloadLength()); got != len(packet)-header.IPv6MinimumSize {
				t.Fatalf("segment %d says it has %d bytes of %d", i, got, len(packet))
			}
		} else {
			ip := header.IPv4(packet)
			if !ip.IsValid(len(packet)) || int(ip.TotalLength()) != len(packet) || !ip.IsChecksumValid() {
				t.Fatalf("segment %d has a bad IP header", i)
			}
			if s.mayFrag && int(ip.ID()) != 7+i {
				t.Errorf("segment %d has ID %d", i, ip.ID())
			}
		}
		tcp := header.TCP(packet[s.ipLen():])
		data := tcp[tcp.DataOffset():]
		if !tcp.IsChecksumValid(from, to, checksum.Checksum(data, 0), uint16(len(data))) {
			t.Fatalf("segment %d has a bad TCP checksum", i)
		}
		if got, want := tcp.SequenceNumber(), s.seq+uint32(len(payload)); got != want {
			t.Fatalf("segment %d has sequence number %d, want %d", i, got, want)
		}
		want := s.flags
		if !last {
			want &^= header.TCPFlagFin | header.TCPFlagPsh
			if i > 0 && len(data) != len(packets[0])-s.ipLen()-int(tcp.DataOffset()) {
				t.Errorf("segment %d of %d has %d bytes", i, len(packets), len(data))
			}
		}
		if tcp.Flags() != want || tcp.AckNumber() != s.ack || tcp.WindowSize() != 999 || !bytes.Equal(tcp.Options(), s.options) {
			t.Fatalf("segment %d has flags %v, want %v; ack %d, options %x", i, tcp.Flags(), want, tcp.AckNumber(), tcp.Options())
		}
		payload = append(payload, data...)
	}
	if !bytes.Equal(payload, s.payload) {
		t.Fatalf("segments have %d bytes of payload, want %d", len(payload), len(s.payload))
	}
}

func randomBytes(random *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

func TestSegmenter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	timestamps := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	tests := []struct {
		name string
		in   superpacket
		mtu  int
		want int
	}{
		{"acknowledgement", superpacket{mss: 1368, flags: header.TCPFlagAck, options: timestamps}, 1420, 1},
		{"one byte", superpacket{mss: 1368, payload: randomBytes(random, 1)}, 1420, 1},
		{"exactly one", superpacket{mss: 1368, options: timestamps, payload: randomBytes(random, 1368)}, 1420, 1},
		{"one more", superpacket{mss: 1368, options: timestamps, payload: randomBytes(random, 1369)}, 1420, 2},
		{"whole write", superpacket{mss: 1368, options: timestamps, payload: randomBytes(random, 32<<10)}, 1420, 24},
		{"FIN", superpacket{mss: 1000, flags: header.TCPFlagFin | header.TCPFlagAck | header.TCPFlagPsh, payload: randomBytes(random, 2500)}, 1420, 3},
		{"smaller MTU", superpacket{mss: 1368, options: timestamps, payload: randomBytes(random, 1368)}, 1280, 2},
		{"larger MTU", superpacket{mss: 1228, options: timestamps, payload: randomBytes(random, 4*1228)}, 9000, 4},
		{"sequence wraps", superpacket{mss: 1000, seq: 1<<32 - 1500, payload: randomBytes(random, 5000)}, 1420, 5},
		{"fragmentable", superpacket{mss: 1000, mayFrag: true, payload: randomBytes(random, 5000)}, 1420, 5},
		{"largest", superpacket{mss: 1368, payload: randomBytes(random, 65000)}, 1420, 48},
	}
	for _, test := range tests {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/IPv6=%v", test.name, v6), func(t *testing.T) {
				in := test.in
				in.v6, in.ack, in.port = v6, 42, 1234
				in.flags |= header.TCPFlagAck
				packets := in.cut(test.mtu)
				in.check(t, packets, test.mtu)
				// The larger header may cost another segment.
				if got := len(packets); got != test.want && !(v6 && got == test.want+1) {
					t.Errorf("made %d segments, want %d", got, test.want)
				}
			})
		}
	}
}

// TestKeepable looks at the ends of what a window may be.
func TestKeepable(t *testing.T) {
	for in, want := range map[uint16]uint16{0: 0, 1: 0, 2: 1, 1<<16 - 1: 1<<16 - 2} {
		if got := keepable(in); got != want {
			t.Errorf("of %d, %d is advertised, want %d", in, got, want)
		}
	}
}

// TestSegmenterShortBuffer gives a buffer that is too short: the packet is
// lost, and nothing else.
func TestSegmenterShortBuffer(t *testing.T) {
	var segment segmenter
	segment.start(superpacket{mss: 1000, payload: make([]byte, 3000)}.build(), 1420)
	if n := segment.next(make([]byte, 100)); n != 0 || segment.active() {
		t.Errorf("wrote %d bytes, still active: %v", n, segment.active())
	}
}

// TestGSOMaxSize checks that a write of the usual size is one superpacket of
// whole segments.
func TestGSOMaxSize(t *testing.T) {
	for _, mtu := range []int{1280, 1420, 1500, 9000, netstack.MaxMTU} {
		size := int(gsoMaxSize(mtu)) - header.TCPTotalHeaderMaximumSize - 1
		if mss := mtu - 52; size%mss != 0 || size < writeSize {
			t.Errorf("MTU %d: %d bytes of payload are no whole segments of %d or less than %d", mtu, size, mss, writeSize)
		}
		if mtu <= 9000 && size+120 > 1<<16-1 {
			t.Errorf("MTU %d: %d bytes do not fit in an IP packet", mtu, size)
		}
	}
}
