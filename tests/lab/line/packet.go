package line

import (
	"encoding/binary"
)

const (
	ipv4Header = 20
	ipv6Header = 40

	// icmp4Quote and icmp6MTU bound what an ICMP error quotes: RFC 1812,
	// section 4.3.2.3, and RFC 4443, section 3.2.
	icmp4Quote = 576 - ipv4Header - 8
	icmp6MTU   = 1280
)

// mayFragment tells whether a router may cut the packet: IPv4 without DF.
func mayFragment(packet []byte) bool {
	return len(packet) >= ipv4Header && packet[0]>>4 == 4 && packet[6]&0x40 == 0
}

// tooBig is the ICMP error that a router sends to the sender of a packet that
// is too large for what comes next. Its source is the packet's destination,
// since the emulator has no address. It is nil for what gets no ICMP error.
func tooBig(packet []byte, mtu int) []byte {
	switch {
	case len(packet) >= ipv4Header && packet[0]>>4 == 4:
		return tooBig4(packet, mtu)
	case len(packet) >= ipv6Header && packet[0]>>4 == 6:
		return tooBig6(packet, mtu)
	}
	return nil
}

// tooBig4 is "fragmentation needed" (RFC 1191, section 4).
func tooBig4(packet []byte, mtu int) []byte {
	quote := packet[:min(len(packet), icmp4Quote)]
	out := make([]byte, ipv4Header+8+len(quote))
	out[0] = 0x45
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	out[8], out[9] = 64, 1
	copy(out[12:16], packet[16:20])
	copy(out[16:20], packet[12:16])
	binary.BigEndian.PutUint16(out[10:], checksum(0, out[:ipv4Header]))
	icmp := out[ipv4Header:]
	icmp[0], icmp[1] = 3, 4
	binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
	copy(icmp[8:], quote)
	binary.BigEndian.PutUint16(icmp[2:], checksum(0, icmp))
	return out
}

// tooBig6 is "packet too big" (RFC 4443, section 3.2).
func tooBig6(packet []byte, mtu int) []byte {
	quote := packet[:min(len(packet), icmp6MTU-ipv6Header-8)]
	out := make([]byte, ipv6Header+8+len(quote))
	out[0] = 0x60
	binary.BigEndian.PutUint16(out[4:], uint16(8+len(quote)))
	out[6], out[7] = 58, 64
	copy(out[8:24], packet[24:40])
	copy(out[24:40], packet[8:24])
	icmp := out[ipv6Header:]
	icmp[0] = 2
	binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	copy(icmp[8:], quote)
	// The pseudo-header of RFC 8200, section 8.1.
	pseudo := sum(0, out[8:40]) + uint32(len(icmp)) + 58
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo, icmp))
	return out
}

// fragment cuts an IPv4 packet into fragments of at most mtu bytes (RFC 791,
// section 3.2). Options are kept in each, which is more than the RFC asks.
func fragment(packet []byte, mtu int) (fragments [][]byte) {
	header := int(packet[0]&15) * 4
	room := (mtu - header) &^ 7
	if header < ipv4Header || header > len(packet) || room <= 0 {
		return nil
	}
	flags := binary.BigEndian.Uint16(packet[6:])
	for payload := packet[header:]; len(payload) > 0; {
		n := min(room, len(payload))
		out := make([]byte, header+n)
		copy(out, packet[:header])
		copy(out[header:], payload[:n])
		payload = payload[n:]
		field := flags
		if len(payload) > 0 {
			field |= 0x2000 // more fragments
		}
		flags = flags&^0x1fff | (flags&0x1fff + uint16(n/8))
		binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
		binary.BigEndian.PutUint16(out[6:], field)
		out[10], out[11] = 0, 0
		binary.BigEndian.PutUint16(out[10:], checksum(0, out[:header]))
		fragments = append(fragments, out)
	}
	return fragments
}

// sum adds up 16-bit words (RFC 1071).
func sum(initial uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		initial += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		initial += uint32(b[0]) << 8
	}
	return initial
}

func checksum(initial uint32, b []byte) uint16 {
	s := sum(initial, b)
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
