package vnet

import (
	"encoding/binary"
	"fmt"
)

// Segmenter cuts one frame read from the TUN into packets no larger than the
// MTU, with complete checksums. The zero value is ready.
//
// The cut follows the MTU of the moment and not only the segment size that the
// kernel asks for: that is what lets a TCP connection survive a smaller MTU at
// once. Datagrams cannot be cut without becoming something else, nor can a
// packet whose checksum is complete, which is not this host's own: they may be
// larger than the MTU.
type Segmenter struct {
	// packet is that of the frame, nil when there is nothing left of it.
	packet []byte

	// sumStart is where the range of the checksum begins and sumAt where in
	// it the checksum is. sumAt is 0 if the checksum is complete already.
	sumStart, sumAt int

	// hdrLen is the size of the IP and transport headers, 0 if the packet
	// passes in one piece.
	hdrLen int

	// unit is how many bytes of payload a packet gets, and at is where in
	// the packet those of the next one begin.
	unit, at int

	// pseudo is the sum of the pseudo-header but for the length.
	pseudo int

	// ipSum is the sum of the IPv4 header but for length and ID.
	ipSum uint64
	id    int

	isV4, isTCP bool
	flags       byte
	seq         uint32
}

// Active says whether part of a frame is left to be cut.
func (s *Segmenter) Active() bool { return s.packet != nil }

// Start takes over a frame: HeaderLen bytes of header and the packet. The
// segmenter keeps it until it is no longer active. The packets will be no
// larger than mtu, in bytes.
//
// A frame that breaks the format gets an error that wraps ErrMalformed, and
// the segmenter is not active then. Another error is that an mtu has no room
// for a payload.
func (s *Segmenter) Start(frame []byte, mtu int) error {
	s.packet = nil
	if len(frame) <= HeaderLen {
		return malformed("it has %d bytes, no more than its header", len(frame))
	}
	h, packet := parseHeader(frame), frame[HeaderLen:]
	kind := h.kind &^ gsoECN
	if kind == gsoNone && mayCut(packet, h, mtu) {
		kind, h.unit = gsoTCP4, maxPacket
		if packet[0]>>4 == 6 {
			kind = gsoTCP6
		}
	}
	if kind == gsoNone {
		s.hdrLen, s.sumAt = 0, 0
		if h.flags&flagNeedsSum != 0 {
			if h.sumStart+h.sumAt+2 > len(packet) {
				return malformed("the checksum, %d bytes after byte %d, is beyond its %d bytes", h.sumAt, h.sumStart, len(packet))
			}
			if h.sumAt == 0 {
				return malformed("no transport protocol begins with its checksum")
			}
			s.sumStart, s.sumAt = h.sumStart, h.sumAt
		}
		s.packet = packet
		return nil
	}
	return s.startSuper(packet, kind, h, mtu)
}

// startSuper is Start for a superpacket.
func (s *Segmenter) startSuper(packet []byte, kind byte, h frameHeader, mtu int) error {
	version := packet[0] >> 4
	s.isV4, s.isTCP = version == 4, kind != gsoUDP
	switch {
	case kind != gsoTCP4 && kind != gsoTCP6 && kind != gsoUDP:
		return malformed("its kind, %d, is unknown", h.kind)
	case kind == gsoTCP4 && version != 4, kind == gsoTCP6 && version != 6, version != 4 && version != 6:
		return malformed("its kind is %d, its IP version %d", kind, version)
	case h.flags&flagNeedsSum == 0:
		return malformed("it is to be cut, but has no partial checksum")
	case h.unit == 0:
		return malformed("it is to be cut into pieces of 0 bytes")
	}

	// Where the transport header begins is known from the checksum's range:
	// IPv6 may have extension headers before it.
	transport := h.sumStart
	if s.isV4 {
		if len(packet) < ip4Len {
			return malformed("%d bytes are no IPv4 header", len(packet))
		}
		if ihl := int(packet[0]&0x0f) * 4; ihl < ip4Len || transport != ihl || be16(packet[2:]) != len(packet) {
			return malformed("an IPv4 header of %d bytes announces %d bytes, checksum from %d, but %d came", ihl, be16(packet[2:]), transport, len(packet))
		}
	} else {
		if len(packet) < ip6Len || transport < ip6Len || be16(packet[4:])+ip6Len != len(packet) {
			return malformed("an IPv6 packet of %d bytes, checksum from %d, announces another length", len(packet), transport)
		}
	}
	if s.isTCP {
		if transport+tcpLen > len(packet) {
			return malformed("the TCP header at %d is beyond its %d bytes", transport, len(packet))
		}
		s.hdrLen = transport + int(packet[transport+12]>>4)*4
		if s.hdrLen < transport+tcpLen || s.hdrLen > len(packet) || h.sumAt != tcpSumAt {
			return malformed("the TCP header from %d to %d, checksum at %d, does not fit its %d bytes", transport, s.hdrLen, h.sumAt, len(packet))
		}
		s.unit = min(h.unit, mtu-s.hdrLen)
		if s.unit < 1 {
			return fmt.Errorf("cutting a frame of the TUN: an MTU of %d bytes has no room for more than its headers of %d; raise the MTU", mtu, s.hdrLen)
		}
		s.flags = packet[transport+13]
		s.seq = binary.BigEndian.Uint32(packet[transport+4:])
	} else {
		s.hdrLen = transport + udpLen
		if s.hdrLen > len(packet) || h.sumAt != udpSumAt {
			return malformed("the UDP header at %d, checksum at %d, does not fit its %d bytes", transport, h.sumAt, len(packet))
		}
		s.unit = h.unit
	}
	s.packet, s.at = packet, s.hdrLen
	s.sumStart, s.sumAt = transport, h.sumAt

	// The partial checksum is taken apart rather than made anew from the
	// addresses: with a routing header, the last destination counts (RFC 8200,
	// section 8.1).
	s.pseudo = be16(packet[transport+s.sumAt:]) + (0xffff ^ (len(packet) - transport))
	if s.isV4 {
		s.id = be16(packet[4:])
		clear(packet[2:6])
		clear(packet[10:12])
		s.ipSum = sum(packet[:transport], 0)
	}
	return nil
}

// mayCut says whether a single packet is a segment of TCP that is larger than
// the MTU, and whose parts are segments as well. The kernel sends no more than
// one when there is not more to send, of the size that it knows.
func mayCut(packet []byte, h frameHeader, mtu int) bool {
	if len(packet) <= mtu || h.flags&flagNeedsSum == 0 {
		return false
	}
	ipLen, what := classify(packet)
	return what == plainTCP && h.sumStart == ipLen && h.sumAt == tcpSumAt &&
		packet[ipLen+13]&(tcpSYN|tcpRST|tcpURG) == 0
}

// Next writes the next packet to b and returns its length. If b is too short
// for it, the rest of the frame is dropped and the length is 0; it is also 0
// if nothing is left.
func (s *Segmenter) Next(b []byte) int {
	if s.hdrLen == 0 || s.packet == nil {
		return s.nextWhole(b)
	}
	payload := s.packet[s.at:]
	isFirst, isLast := s.at == s.hdrLen, true
	if len(payload) > s.unit {
		payload, isLast = payload[:s.unit], false
	}
	total := s.hdrLen + len(payload)
	if len(b) < total {
		s.packet = nil
		return 0
	}
	b = b[:total]
	copy(b, s.packet[:s.hdrLen])
	copy(b[s.hdrLen:], payload)
	s.at += len(payload)
	if isLast {
		s.packet = nil
	}

	if s.isV4 {
		putBE16(b[2:], total)
		// Only packets that may be fragmented need an ID (RFC 6864, section
		// 4.1), but the kernel counts for all.
		putBE16(b[4:], s.id)
		s.id++
		binary.NativeEndian.PutUint16(b[10:], ^fold(sum(b[2:6], s.ipSum)))
	} else {
		putBE16(b[4:], total-ip6Len)
	}
	segment := b[s.sumStart:]
	if s.isTCP {
		flags := s.flags
		if !isFirst {
			flags &^= tcpCWR // RFC 3168, section 6.1.2
		}
		if !isLast {
			flags &^= tcpFIN | tcpPSH
		}
		segment[13] = flags
		binary.BigEndian.PutUint32(segment[4:], s.seq)
		s.seq += uint32(len(payload))
	} else {
		putBE16(segment[4:], len(segment))
	}
	putBE16(segment[s.sumAt:], int(fold(uint64(s.pseudo+len(segment)))))
	completeSum(segment, s.sumAt)
	return total
}

// nextWhole is Next for a packet that passes in one piece.
func (s *Segmenter) nextWhole(b []byte) int {
	packet := s.packet
	s.packet = nil
	if len(b) < len(packet) {
		return 0
	}
	n := copy(b, packet)
	if n > 0 && s.sumAt > 0 {
		completeSum(b[s.sumStart:n], s.sumAt)
	}
	return n
}
