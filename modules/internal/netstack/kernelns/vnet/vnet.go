// Package vnet speaks what Linux puts before every packet on a TUN that was
// opened with IFF_VNET_HDR: the header of virtio-net (virtio 1.2, section
// 5.1.6), by which one read or write moves up to 64 KiB of TCP with a checksum
// that is still to be computed.
//
// A [Segmenter] makes WireGuard's packets of what the kernel sends, a
// [Coalescer] makes the kernel's frames of what WireGuard received. Neither
// allocates per packet or takes a lock; each serves one goroutine at a time.
package vnet

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderLen is the size of the header before every packet on the TUN, the
// default of TUNSETVNETHDRSZ. Its fields are in the byte order of the machine,
// the default of TUNSETVNETLE and TUNSETVNETBE.
const HeaderLen = 10

// flagNeedsSum says that the checksum field of the packet holds no more than
// the sum of the pseudo-header.
const flagNeedsSum = 1

// What kind of superpacket a frame is.
const (
	gsoNone = 0
	gsoTCP4 = 1
	gsoTCP6 = 4
	gsoUDP  = 5

	// gsoECN comes with a TCP kind if CWR is set, which only the first
	// segment must carry.
	gsoECN = 0x80
)

// Where things are in the headers of a packet.
const (
	ip4Len = 20
	ip6Len = 40

	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58

	tcpLen    = 20
	tcpMaxLen = 60
	tcpSumAt  = 16
	udpLen    = 8
	udpSumAt  = 6

	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpURG = 0x20
	tcpCWR = 0x80
)

// maxPacket bounds a packet: the length field of IPv4 has 16 bits.
const maxPacket = 1<<16 - 1

// ErrMalformed is what errors about frames that break the format wrap.
var ErrMalformed = errors.New("the frame is malformed")

// frameHeader is struct virtio_net_hdr.
type frameHeader struct {
	flags, kind byte

	// hdrLen is how many bytes the headers of the packet have. It is a hint:
	// the kernel's own counts whatever part of the payload lies beside them.
	hdrLen int

	// unit is how many bytes of payload each packet gets.
	unit int

	// sumStart is where the checksum's range begins in the packet, and sumAt
	// where in that range it is to be stored.
	sumStart, sumAt int
}

// parseHeader reads the header at the start of b, which has HeaderLen bytes.
func parseHeader(b []byte) frameHeader {
	native := binary.NativeEndian
	return frameHeader{
		flags:    b[0],
		kind:     b[1],
		hdrLen:   int(native.Uint16(b[2:])),
		unit:     int(native.Uint16(b[4:])),
		sumStart: int(native.Uint16(b[6:])),
		sumAt:    int(native.Uint16(b[8:])),
	}
}

// put writes the header to the start of b, which has HeaderLen bytes.
func (h frameHeader) put(b []byte) {
	native := binary.NativeEndian
	b[0], b[1] = h.flags, h.kind
	native.PutUint16(b[2:], uint16(h.hdrLen))
	native.PutUint16(b[4:], uint16(h.unit))
	native.PutUint16(b[6:], uint16(h.sumStart))
	native.PutUint16(b[8:], uint16(h.sumAt))
}

// malformed returns an error about a frame that was read.
func malformed(format string, args ...any) error {
	return fmt.Errorf("reading a frame of the TUN: %w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// be16 reads a number in network byte order.
func be16(b []byte) int { return int(binary.BigEndian.Uint16(b)) }

// putBE16 writes the low 16 bits of v in network byte order.
func putBE16(b []byte, v int) { binary.BigEndian.PutUint16(b, uint16(v)) }
