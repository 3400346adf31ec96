package vnet

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum does not care for byte order (RFC 1071, section 2(B)):
// words that are read in the machine's order have a sum that is right when it
// is stored in the machine's order. So nothing is swapped here but numbers,
// such as a length, that did not come from memory.

// sum adds the 16-bit words of b in the machine's byte order to initial, in
// one's complement. If b has an odd length, a zero byte follows it.
//
// Each block of 64 bytes is a chain of additions of its own whose last carry is
// counted: a carry that was added to the next block would have to wait for it.
func sum(b []byte, initial uint64) uint64 {
	native := binary.NativeEndian
	s, carry, carries := initial, uint64(0), uint64(0)
	for len(b) >= 64 {
		w := b[:64:64]
		s, carry = bits.Add64(s, native.Uint64(w[0:]), 0)
		s, carry = bits.Add64(s, native.Uint64(w[8:]), carry)
		s, carry = bits.Add64(s, native.Uint64(w[16:]), carry)
		s, carry = bits.Add64(s, native.Uint64(w[24:]), carry)
		s, carry = bits.Add64(s, native.Uint64(w[32:]), carry)
		s, carry = bits.Add64(s, native.Uint64(w[40:]), carry)
		s, carry = bits.Add64(s, native.Uint64(w[48:]), carry)
		s, carry = bits.Add64(s, native.Uint64(w[56:]), carry)
		carries += carry
		b = b[64:]
	}
	if len(b) >= 32 {
		w := b[:32:32]
		s, carry = bits.Add64(s, native.Uint64(w[0:]), 0)
		s, carry = bits.Add64(s, native.Uint64(w[8:]), carry)
		s, carry = bits.Add64(s, native.Uint64(w[16:]), carry)
		s, carry = bits.Add64(s, native.Uint64(w[24:]), carry)
		carries += carry
		b = b[32:]
	}
	if len(b) >= 16 {
		w := b[:16:16]
		s, carry = bits.Add64(s, native.Uint64(w[0:]), 0)
		s, carry = bits.Add64(s, native.Uint64(w[8:]), carry)
		carries += carry
		b = b[16:]
	}
	if len(b) >= 8 {
		s, carry = bits.Add64(s, native.Uint64(b), 0)
		carries += carry
		b = b[8:]
	}

	// What is left has less than 64 bits and fits beside the carries.
	if len(b) >= 4 {
		carries += uint64(native.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		carries += uint64(native.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		carries += uint64(native.Uint16([]byte{b[0], 0}))
	}
	s, carry = bits.Add64(s, carries, 0)
	return s + carry
}

// fold makes a sum of 16 bits of a larger one.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// completeSum makes the partial checksum at sumAt of b, whose whole length it
// covers, a full one.
func completeSum(b []byte, sumAt int) {
	s := ^fold(sum(b, 0))
	if s == 0 && sumAt == udpSumAt {
		// In UDP, 0 would say that there is no checksum (RFC 768).
		s = ^s
	}
	binary.NativeEndian.PutUint16(b[sumAt:], s)
}

// pseudoSum is the sum of a pseudo-header of TCP, in the machine's byte order:
// the two addresses, side by side, the protocol and the length of the segment,
// which is less than 2^16 by the length of an IP header.
func pseudoSum(addresses []byte, segmentLen int) uint64 {
	var number [2]byte
	putBE16(number[:], protocolTCP+segmentLen)
	return sum(addresses, uint64(binary.NativeEndian.Uint16(number[:])))
}
