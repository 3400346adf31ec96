package vnet

// class is what a Coalescer can do with a packet.
type class int

const (
	// other is certainly not TCP.
	other class = iota

	// unclear may be of a flow of TCP, but is nothing to join.
	unclear

	// plainTCP is TCP right behind an IP header without options or extensions,
	// whole and not a fragment, with at least a header of TCP.
	plainTCP
)

const (
	// fragmented has the bits of IPv4's fragment field that say so: more
	// fragments, or an offset.
	fragmented = 0x3fff

	// dontFragment is a bit of the first byte of that field.
	dontFragment = 0x40
)

// classify parses the IP header of a packet. The length is that of the IP
// header, for plain TCP only.
func classify(packet []byte) (ipLen int, _ class) {
	switch packet[0] >> 4 {
	case 4:
		if len(packet) < ip4Len || packet[9] != protocolTCP {
			return 0, other
		}
		if packet[0] != 4<<4|ip4Len/4 || be16(packet[2:]) != len(packet) ||
			be16(packet[6:])&fragmented != 0 || len(packet) < ip4Len+tcpLen {
			return 0, unclear
		}
		return ip4Len, plainTCP
	case 6:
		if len(packet) < ip6Len {
			return 0, other
		}
		switch packet[6] {
		case protocolTCP:
			if be16(packet[4:])+ip6Len == len(packet) && len(packet) >= ip6Len+tcpLen {
				return ip6Len, plainTCP
			}
		case protocolUDP, protocolICMPv6:
			return 0, other
		}
		return 0, unclear
	}
	return 0, other
}

// addressesOf returns the addresses of a packet, which lie side by side.
func addressesOf(packet []byte, ipLen int) []byte {
	if ipLen == ip4Len {
		return packet[12:20]
	}
	return packet[8:40]
}
