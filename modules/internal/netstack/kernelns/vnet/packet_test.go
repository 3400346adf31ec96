package vnet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	from4, to4 = tcpip.AddrFrom4([4]byte{10, 77, 0, 1}), tcpip.AddrFrom4([4]byte{10, 77, 0, 2})
	from6, to6 = tcpip.AddrFrom16([16]byte{0xfd, 15: 1}), tcpip.AddrFrom16([16]byte{0xfd, 15: 2})
)

const (
	ack = header.TCPFlagAck
	psh = header.TCPFlagPsh
	fin = header.TCPFlagFin
	ece = header.TCPFlags(0x40)
	cwr = header.TCPFlags(0x80)
)

// segment describes a TCP segment, from which gVisor's code builds packets: it
// shares nothing with ours.
type segment struct {
	v6       bool
	port     uint16
	seq, ack uint32
	window   uint16
	flags    header.TCPFlags
	options  []byte // of TCP
	payload  []byte

	id         uint16
	mayFrag    bool
	tos, ttl   uint8
	flow       uint32
	extensions []byte // of IPv6, the first of which has the number first
	first      uint8
}

func (s segment) addresses() (from, to tcpip.Address) {
	if s.v6 {
		return from6, to6
	}
	return from4, to4
}

func (s segment) ipLen() int {
	if s.v6 {
		return header.IPv6MinimumSize + len(s.extensions)
	}
	return header.IPv4MinimumSize
}

func (s segment) hdrLen() int { return s.ipLen() + header.TCPMinimumSize + len(s.options) }

// build returns the packet. Its checksum is complete, or if partial that of
// the pseudo-header alone, as the kernel leaves it.
func (s segment) build(partial bool) []byte {
	packet := make([]byte, s.hdrLen()+len(s.payload))
	from, to := s.addresses()
	if s.v6 {
		first := uint8(header.TCPProtocolNumber)
		if len(s.extensions) > 0 {
			first = s.first
		}
		header.IPv6(packet).Encode(&header.IPv6Fields{
			TrafficClass: s.tos, FlowLabel: s.flow, PayloadLength: uint16(len(packet) - header.IPv6MinimumSize),
			TransportProtocol: tcpip.TransportProtocolNumber(first), HopLimit: s.ttl, SrcAddr: from, DstAddr: to,
		})
		copy(packet[header.IPv6MinimumSize:], s.extensions)
	} else {
		fields := header.IPv4Fields{
			TOS: s.tos, TotalLength: uint16(len(packet)), ID: s.id, TTL: s.ttl, Flags: header.IPv4FlagDontFragment,
			Protocol: uint8(header.TCPProtocolNumber), SrcAddr: from, DstAddr: to,
		}
		if s.mayFrag {
			fields.Flags = 0
		}
		ip := header.IPv4(packet)
		ip.Encode(&fields)
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	tcp := header.TCP(packet[s.ipLen():])
	tcp.Encode(&header.TCPFields{
		SrcPort: s.port, DstPort: 80, SeqNum: s.seq, AckNum: s.ack, WindowSize: s.window, Flags: s.flags,
		DataOffset: uint8(header.TCPMinimumSize + len(s.options)),
	})
	copy(tcp[header.TCPMinimumSize:], s.options)
	copy(packet[s.hdrLen():], s.payload)
	pseudo := header.PseudoHeaderChecksum(header.TCPProtocolNumber, from, to, uint16(len(tcp)))
	if partial {
		tcp.SetChecksum(pseudo)
	} else {
		tcp.SetChecksum(^checksum.Checksum(tcp, pseudo))
	}
	return packet
}

// superframe returns s as the frame that the kernel would send.
func (s segment) superframe(unit int) []byte {
	kind := byte(1)
	if s.v6 {
		kind = 4
	}
	if s.flags&cwr != 0 {
		kind |= 0x80
	}
	return rawFrame(1, kind, s.hdrLen(), unit, s.ipLen(), 16, s.build(true))
}

// cut returns the packets that s must become with unit bytes of payload each.
func (s segment) cut(unit int) [][]byte {
	var packets [][]byte
	rest := s
	for {
		part := rest
		isLast := len(rest.payload) <= unit
		if !isLast {
			part.payload = rest.payload[:unit]
			part.flags &^= fin | psh
		}
		packets = append(packets, part.build(false))
		if isLast {
			return packets
		}
		rest.payload = rest.payload[unit:]
		rest.seq += uint32(unit)
		rest.id++
		rest.flags &^= cwr
	}
}

// rawFrame puts a header before a packet.
func rawFrame(flags, kind byte, hdrLen, unit, sumStart, sumAt int, packet []byte) []byte {
	b := []byte{flags, kind}
	for _, v := range []int{hdrLen, unit, sumStart, sumAt} {
		b = binary.NativeEndian.AppendUint16(b, uint16(v))
	}
	return append(b, packet...)
}

// segments runs a frame through a segmenter.
func segments(t testing.TB, frame []byte, mtu int) [][]byte {
	t.Helper()
	var s Segmenter
	if err := s.Start(frame, mtu); err != nil {
		t.Fatal(err)
	}
	var packets [][]byte
	for s.Active() {
		b := bytes.Repeat([]byte{0xa5}, 1<<16)
		n := s.Next(b)
		if n == 0 {
			t.Fatal("the segmenter gave up")
		}
		packets = append(packets, b[:n:n])
	}
	return packets
}

// frames runs a batch through a coalescer and returns what it writes.
func frames(t testing.TB, packets [][]byte) [][]byte {
	t.Helper()
	var c Coalescer
	before := make([][]byte, len(packets))
	for i, packet := range packets {
		before[i] = bytes.Clone(packet)
		c.Add(packet)
	}
	var written [][]byte
	err := c.Frames(func(frame [][]byte) error {
		written = append(written, bytes.Join(frame, nil))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range before {
		if !bytes.Equal(before[i], packets[i]) {
			t.Fatalf("the coalescer changed packet %d", i)
		}
	}
	return written
}

func randomBytes(random *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.NativeEndian.AppendUint64(b, random.Uint64())
	}
	return b[:n:n]
}

// same fails the test unless the packets are those wanted.
func same(t testing.TB, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d of %d is\n% x, want\n% x", i, len(want), head(got[i]), head(want[i]))
		}
	}
}

func head(b []byte) []byte { return b[:min(len(b), 120)] }
