package gvisor

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxRuns is how many flows of one batch are joined at the same time. A
	// batch has 128 packets; more flows than this have little to join.
	maxRuns = 16

	// maxJoined bounds a joined packet: the length field of IPv4 has 16 bits.
	maxJoined = 1<<16 - 1

	// pieceSize is the size of the pieces of memory that a joined payload is
	// copied into. The stack clears a piece before it hands it out, all of it
	// and rounded up to a power of two, so that small ones cost less, and are
	// still in the cache when they are filled.
	pieceSize = 8 << 10

	tcpFlagsThatJoin = uint8(header.TCPFlagAck | header.TCPFlagPsh)
)

// coalescer joins the TCP segments of one batch that follow each other in
// their flow, as a network card's receive offload does, so that the stack sees
// one large segment. The payloads are copied once, into one piece of memory.
//
// It is gVisor's gro package in purpose. That one chains the buffers of the
// segments, allocates for IPv6, and would take a lock between peers.
type coalescer struct {
	dispatcher stack.NetworkDispatcher
	runs       [maxRuns]run
	used       int
}

// run is a sequence of segments of one flow.
type run struct {
	network tcpip.NetworkProtocolNumber

	// first is the packet that the run began with; the headers of all others
	// say the same.
	first  []byte
	ipLen  int
	hdrLen int

	// payloads are those of the segments, size bytes together, all of them
	// unit bytes long but the last.
	payloads [][]byte
	size     int
	unit     int
	next     uint32
	push     bool
	full     bool
}

// add takes a packet of the batch and returns true, or returns false if it is
// neither plain TCP nor plain UDP. The packet must stay as it is until flush.
func (c *coalescer) add(packet []byte) bool {
	network, ipLen, protocol, ok := plain(packet)
	if !ok {
		return false
	}
	if protocol != uint8(header.TCPProtocolNumber) {
		deliver(c.dispatcher, network, packet, ipLen+header.UDPMinimumSize)
		return true
	}
	tcp := packet[ipLen:]
	offset := int(tcp[header.TCPDataOffset]>>4) * 4
	at := c.find(packet, ipLen)
	flags := tcp[header.TCPFlagsOffset]
	if offset < header.TCPMinimumSize || offset >= len(tcp) ||
		flags&^tcpFlagsThatJoin != 0 || flags&uint8(header.TCPFlagAck) == 0 {
		// Nothing to join, but it must not overtake what came before it.
		if at >= 0 {
			c.end(at)
		}
		deliver(c.dispatcher, network, packet, min(ipLen+max(offset, header.TCPMinimumSize), len(packet)))
		return true
	}
	hdrLen := ipLen + offset
	payload := packet[hdrLen:]
	push := flags&uint8(header.TCPFlagPsh) != 0
	seq := binary.BigEndian.Uint32(tcp[header.TCPSeqNumOffset:])
	if at >= 0 {
		r := &c.runs[at]
		if r.continues(packet, ipLen, hdrLen, seq) {
			r.payloads = append(r.payloads, payload)
			r.size += len(payload)
			r.next += uint32(len(payload))
			r.push = push
			r.full = push || len(payload) < r.unit
			return true
		}
		c.end(at)
	}
	if c.used == maxRuns {
		c.end(0)
	}
	r := &c.runs[c.used]
	c.used++
	r.network, r.first, r.ipLen, r.hdrLen = network, packet, ipLen, hdrLen
	r.payloads = append(r.payloads[:0], payload)
	r.size, r.unit = len(payload), len(payload)
	r.next = seq + uint32(len(payload))
	r.push, r.full = push, push
	return true
}

// flush hands over what is still held.
func (c *coalescer) flush() {
	for i := range c.used {
		c.runs[i].deliver(c.dispatcher)
	}
	c.used = 0
	c.dispatcher = nil
}

// find returns the index of the run with the packet's addresses and ports, or
// -1.
func (c *coalescer) find(packet []byte, ipLen int) int {
	for i := range c.used {
		r := &c.runs[i]
		if r.ipLen == ipLen && bytes.Equal(flowOf(r.first, ipLen), flowOf(packet, ipLen)) {
			return i
		}
	}
	return -1
}

// end hands over one run and removes it. The order of the others, which are
// of other flows, does not matter.
func (c *coalescer) end(at int) {
	c.runs[at].deliver(c.dispatcher)
	c.used--
	c.runs[at], c.runs[c.used] = c.runs[c.used], c.runs[at]
}

// continues says whether a packet of the same flow is the run's next segment.
func (r *run) continues(packet []byte, ipLen, hdrLen int, seq uint32) bool {
	size := len(packet) - hdrLen
	if r.full || seq != r.next || hdrLen != r.hdrLen || size > r.unit || r.hdrLen+r.size+size > maxJoined {
		return false
	}
	if r.network == header.IPv4ProtocolNumber {
		// Type of service, don't-fragment, time to live.
		if packet[1] != r.first[1] || packet[6] != r.first[6] || packet[8] != r.first[8] {
			return false
		}
	} else if !bytes.Equal(packet[:4], r.first[:4]) || packet[7] != r.first[7] {
		// Traffic class and flow label, hop limit.
		return false
	}
	tcp, first := packet[ipLen:hdrLen], r.first[ipLen:hdrLen]
	return bytes.Equal(tcp[8:12], first[8:12]) && // acknowledgement
		bytes.Equal(tcp[14:16], first[14:16]) && // window
		bytes.Equal(tcp[header.TCPMinimumSize:], first[header.TCPMinimumSize:])
}

// deliver hands the joined packet to the stack and lets go of the buffers.
func (r *run) deliver(dispatcher stack.NetworkDispatcher) {
	if len(r.payloads) == 1 {
		deliver(dispatcher, r.network, r.first, r.hdrLen)
	} else {
		joined := buffer.MakeWithView(r.header())
		left := r.size
		piece := buffer.NewView(min(left, pieceSize))
		for _, payload := range r.payloads {
			for len(payload) > 0 {
				if piece.Size() == pieceSize {
					joined.Append(piece)
					piece = buffer.NewView(min(left, pieceSize))
				}
				n, _ := piece.Write(payload[:min(len(payload), pieceSize-piece.Size())])
				payload = payload[n:]
				left -= n
			}
		}
		joined.Append(piece)
		deliverBuffer(dispatcher, r.network, joined)
	}
	clear(r.payloads)
	r.payloads = r.payloads[:0]
	r.first = nil
}

// header returns the header of the joined packet.
func (r *run) header() *buffer.View {
	view := buffer.NewViewWithData(r.first[:r.hdrLen])
	packet := view.AsSlice()
	if r.network == header.IPv4ProtocolNumber {
		ip := header.IPv4(packet)
		ip.SetTotalLength(uint16(r.hdrLen + r.size))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	} else {
		header.IPv6(packet).SetPayloadLength(uint16(r.hdrLen + r.size - header.IPv6MinimumSize))
	}
	if r.push {
		packet[r.ipLen+header.TCPFlagsOffset] |= uint8(header.TCPFlagPsh)
	}
	return view
}

// plain parses the header of a packet and says whether it is TCP or UDP right
// behind an IP header without options or extensions, whole and not a fragment,
// with at least a transport header.
func plain(packet []byte) (network tcpip.NetworkProtocolNumber, ipLen int, protocol uint8, ok bool) {
	const moreFragmentsAndOffset = 0x3fff
	switch ipVersion(packet) {
	case header.IPv4Version:
		network, ipLen = header.IPv4ProtocolNumber, header.IPv4MinimumSize
		if len(packet) < ipLen || packet[0]&0x0f != header.IPv4MinimumSize/4 ||
			be16(packet[2:]) != len(packet) || be16(packet[6:])&moreFragmentsAndOffset != 0 {
			return
		}
		protocol = packet[9]
	case header.IPv6Version:
		network, ipLen = header.IPv6ProtocolNumber, header.IPv6MinimumSize
		if len(packet) < ipLen || be16(packet[4:])+ipLen != len(packet) {
			return
		}
		protocol = packet[6]
	default:
		return
	}
	switch protocol {
	case uint8(header.TCPProtocolNumber):
		ok = len(packet) >= ipLen+header.TCPMinimumSize
	case uint8(header.UDPProtocolNumber):
		ok = len(packet) >= ipLen+header.UDPMinimumSize
	}
	return
}

// flowOf returns the addresses and ports of a plain packet, which lie side by
// side.
func flowOf(packet []byte, ipLen int) []byte {
	if ipLen == header.IPv4MinimumSize {
		return packet[12 : ipLen+4]
	}
	return packet[8 : ipLen+4]
}

// deliver copies one packet, whose headers are hdrLen bytes, into the stack.
//
// The headers get a piece of memory of their own: the stack copies a header's
// whole piece when it looks at it a second time.
func deliver(dispatcher stack.NetworkDispatcher, network tcpip.NetworkProtocolNumber, packet []byte, hdrLen int) {
	copied := buffer.MakeWithView(buffer.NewViewWithData(packet[:hdrLen]))
	if len(packet) > hdrLen {
		copied.Append(buffer.NewViewWithData(packet[hdrLen:]))
	}
	deliverBuffer(dispatcher, network, copied)
}

// deliverBuffer hands one packet to the stack.
func deliverBuffer(dispatcher stack.NetworkDispatcher, network tcpip.NetworkProtocolNumber, packet buffer.Buffer) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: packet})
	dispatcher.DeliverNetworkPacket(network, pkt)
	pkt.DecRef()
}
