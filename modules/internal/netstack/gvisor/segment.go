package gvisor

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segmenter cuts one packet of the stack into packets for the tunnel. TCP
// comes as superpackets of up to gsoMaxSize; everything else passes as it is.
//
// The cut follows the MTU of the moment and not only the connection's own MSS:
// that is what lets a connection survive a smaller MTU.
type segmenter struct {
	pkt *stack.PacketBuffer

	// header is the IP and TCP header of the superpacket, the pattern for
	// those of its segments.
	header  [header.IPv4MaximumHeaderSize + header.TCPHeaderMaximumSize]byte
	ipLen   int
	hdrLen  int
	isV4    bool
	flags   header.TCPFlags
	seq     uint32
	id      uint16
	hasID   bool
	pseudo  uint16
	mss     int
	left    int
	first   bool
	partial bool

	// view and offset say where the payload goes on.
	view   *buffer.View
	offset int
}

// active says whether part of a packet is left to be cut.
func (s *segmenter) active() bool { return s.pkt != nil }

// release forgets the packet.
func (s *segmenter) release() {
	if s.pkt != nil {
		s.pkt.DecRef()
		s.pkt = nil
		s.view = nil
	}
}

// start takes over a packet and its reference. The segments will be no larger
// than mtu.
func (s *segmenter) start(pkt *stack.PacketBuffer, mtu int) {
	s.pkt = pkt
	views, skip := pkt.AsViewList()
	s.view, s.offset = views.Front(), skip

	network := pkt.NetworkHeader().Slice()
	transport := pkt.TransportHeader().Slice()
	gso := pkt.GSOOptions
	if gso.Type == stack.GSONone || len(network)+len(transport) > len(s.header) {
		s.hdrLen, s.partial = 0, false
		s.left = pkt.Size()
		s.mss = s.left
		s.first = true
		return
	}

	s.ipLen = copy(s.header[:], network)
	s.hdrLen = s.ipLen + copy(s.header[s.ipLen:], transport)
	s.left = pkt.Size() - s.hdrLen
	s.partial = gso.NeedsCsum
	s.first = true
	s.mss = mtu - s.hdrLen
	if gso.MSS > 0 {
		s.mss = min(s.mss, int(gso.MSS))
	}
	s.skip(s.hdrLen)

	tcp := header.TCP(s.header[s.ipLen:s.hdrLen])
	s.seq = tcp.SequenceNumber()
	s.flags = tcp.Flags()
	tcp.SetWindowSize(keepable(tcp.WindowSize()))
	s.isV4 = s.header[0]>>4 == header.IPv4Version
	var addresses []byte
	if s.isV4 {
		ip := header.IPv4(s.header[:s.ipLen])
		addresses = s.header[12:20]
		s.id = ip.ID()
		s.hasID = ip.Flags()&header.IPv4FlagDontFragment == 0
	} else {
		addresses = s.header[8:40]
	}
	s.pseudo = checksum.Combine(checksum.Checksum(addresses, 0), uint16(header.TCPProtocolNumber))
}

// keepable is the window to advertise in place of the stack's own: one unit
// less.
//
// The stack remembers the right edge of its window to the byte, and at every
// segment rounds what is left of it down to a whole unit, which is 256 bytes
// here. So it goes back behind what it has advertised before, and takes nothing
// from there: once the window is closed, not even the acknowledgements of a peer
// that has filled it (RFC 9293, section 3.10.7.4, makes an exception for them).
// Whoever reads only after writing would wait for ever then. The edge that is one
// unit lower is never gone behind.
func keepable(window uint16) uint16 { return max(window, 1) - 1 }

// next writes the next packet to b and returns its length, or 0 if b is too
// short for it. After the last one the segmenter is no longer active.
func (s *segmenter) next(b []byte) int {
	size := min(s.mss, s.left)
	total := s.hdrLen + size
	if len(b) < total {
		s.release()
		return 0
	}
	b = b[:total]
	copy(b, s.header[:s.hdrLen])
	s.copyPayload(b[s.hdrLen:])
	s.left -= size
	if s.hdrLen > 0 {
		s.finishHeader(b, size)
	}
	s.first = false
	if s.left == 0 {
		s.release()
	}
	return total
}

// finishHeader makes the copied header of a superpacket that of one segment
// with size bytes of payload.
func (s *segmenter) finishHeader(b []byte, size int) {
	whole := s.first && s.left == 0
	if !whole {
		if s.isV4 {
			ip := header.IPv4(b)
			ip.SetTotalLength(uint16(len(b)))
			if s.hasID {
				// Packets that may be fragmented need their own ID
				// (RFC 6864, section 4.3).
				ip.SetID(s.id)
				s.id++
			}
			ip.SetChecksum(0)
			ip.SetChecksum(^ip.CalculateChecksum())
		} else {
			header.IPv6(b).SetPayloadLength(uint16(len(b) - header.IPv6MinimumSize))
		}
	}
	if whole && !s.partial {
		return
	}
	tcp := header.TCP(b[s.ipLen:])
	if !whole {
		flags := s.flags
		if s.left > 0 {
			flags &^= header.TCPFlagFin | header.TCPFlagPsh
		}
		tcp.SetFlags(uint8(flags))
		tcp.SetSequenceNumber(s.seq)
		s.seq += uint32(size)
	}
	tcp.SetChecksum(0)
	sum := checksum.Combine(s.pseudo, uint16(len(tcp)))
	tcp.SetChecksum(^checksum.Checksum(tcp, sum))
}

// skip moves the start of the payload n bytes on.
func (s *segmenter) skip(n int) {
	for s.view != nil {
		if have := s.view.Size() - s.offset; n < have {
			s.offset += n
			return
		} else {
			n -= have
		}
		s.view, s.offset = s.view.Next(), 0
	}
}

// copyPayload fills b with the bytes that follow.
func (s *segmenter) copyPayload(b []byte) {
	for len(b) > 0 && s.view != nil {
		n := copy(b, s.view.AsSlice()[s.offset:])
		b = b[n:]
		s.offset += n
		if s.offset == s.view.Size() {
			s.view, s.offset = s.view.Next(), 0
		}
	}
}

// mayWait says whether the sender of an outgoing packet can be made to wait:
// data and acknowledgements, whose senders run in goroutines of their own.
//
// What the stack sends from within the delivery of an incoming packet must not
// wait, or the device's Write would wait for its Read: RST for a closed port
// and ICMP. A SYN does not wait either, since a dial must end with its
// context; if it is dropped it is sent again.
func mayWait(pkt *stack.PacketBuffer) bool {
	ip := pkt.NetworkHeader().Slice()
	var protocol uint8
	switch {
	case len(ip) >= header.IPv4MinimumSize && ip[0]>>4 == header.IPv4Version:
		protocol = ip[9]
	case len(ip) >= header.IPv6MinimumSize:
		protocol = ip[6]
		if protocol == uint8(header.IPv6FragmentExtHdrIdentifier) && len(ip) > header.IPv6MinimumSize {
			protocol = ip[header.IPv6MinimumSize]
		}
	}
	switch protocol {
	case uint8(header.UDPProtocolNumber):
		return true
	case uint8(header.TCPProtocolNumber):
		tcp := pkt.TransportHeader().Slice()
		if len(tcp) < header.TCPMinimumSize {
			return true
		}
		flags := header.TCPFlags(tcp[header.TCPFlagsOffset])
		isSyn := flags&header.TCPFlagSyn != 0 && flags&header.TCPFlagAck == 0
		return !isSyn && flags&header.TCPFlagRst == 0
	}
	return false
}

// gsoMaxSize is what the stack is told about the largest superpacket, for
// segments of an MTU. The payload of one is this less
// TCPTotalHeaderMaximumSize and 1, and it should be a whole number of
// segments, just large enough for one write of a connection: 32 KiB in about
// 24 segments. Twice as much measured slower.
func gsoMaxSize(mtu int) uint32 {
	const timestamps = 12
	mss := mtu - header.IPv4MinimumSize - header.TCPMinimumSize - timestamps
	segments := (writeSize + mss - 1) / mss
	return uint32(segments*mss + header.TCPTotalHeaderMaximumSize + 1)
}

// ipVersion returns the version of a packet, 0 if it is empty.
func ipVersion(packet []byte) byte {
	if len(packet) == 0 {
		return 0
	}
	return packet[0] >> 4
}

// be16 reads a number in network byte order.
func be16(b []byte) int { return int(binary.BigEndian.Uint16(b)) }
