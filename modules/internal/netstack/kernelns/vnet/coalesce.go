package vnet

import (
	"bytes"
	"encoding/binary"
)

const (
	// maxRuns is how many flows of one batch are joined at the same time. A
	// batch of wireguard-go has 128 packets; more flows than this have little
	// to join.
	maxRuns = 16

	// maxPieces bounds the pieces of a frame: writev takes no more than
	// IOV_MAX, which is 1024.
	maxPieces = 1024

	// maxHeaders is the size of the largest headers that are joined.
	maxHeaders = ip6Len + tcpMaxLen
)

// Coalescer joins the TCP segments of one batch that follow each other in
// their flow, as a network card's receive offload does, so that the kernel sees
// one large segment. The zero value is ready, and it is meant to be used again
// and again: Add the packets of a batch, call Frames, then Reset.
//
// Everything else passes as it is: also datagrams, which may be joined only
// for receivers that asked for it.
//
// The kernel does not look at the checksum of a joined segment, and neither
// does the Coalescer: WireGuard has authenticated each packet, which for Linux's
// own WireGuard is enough to call all checksums inside it good (drivers/net/
// wireguard/receive.c). A look at them cost 0.2 CPU seconds per GiB.
type Coalescer struct {
	packets []held
	frames  []frame

	// open has the indexes of the frames that may still grow, one for each
	// flow, the most recently used one first.
	open   [maxRuns]int
	opened int

	// headers and pieces are those of the frame that is being written.
	headers [HeaderLen + maxHeaders]byte
	pieces  [][]byte
}

// held is one packet of the batch.
type held struct {
	data []byte

	// next is the index of the packet that follows in the same frame.
	next int
}

// frame is what will be written at once: one packet, or the joined segments
// of one flow.
type frame struct {
	// first and last are the indexes of its packets, count is how many it has.
	first, last, count int

	// ports are the two ports as they are in memory.
	ports         uint32
	ipLen, hdrLen int

	// All segments have unit bytes of payload but the last, size together.
	unit, size int

	// nextSeq is the sequence number after the last segment.
	nextSeq uint32

	hasPush bool
}

// Add takes a packet of the batch, which must stay as it is until Reset. An
// empty one is left out.
func (c *Coalescer) Add(packet []byte) {
	if len(packet) == 0 {
		return
	}
	ipLen, what := classify(packet)
	switch what {
	case other:
		c.addFrame(packet)
		return
	case unclear:
		// It may belong to any of the flows and must not be overtaken.
		c.opened = 0
		c.addFrame(packet)
		return
	}
	tcp := packet[ipLen:]
	hdrLen := ipLen + int(tcp[12]>>4)*4
	ports := binary.NativeEndian.Uint32(tcp)
	at := c.find(packet, ipLen, ports)

	flags := tcp[13]
	if hdrLen < ipLen+tcpLen || hdrLen >= len(packet) || tcp[12]&0x0f != 0 || flags&^tcpPSH != tcpACK {
		// Nothing to join, but it must not overtake what came before it.
		if at >= 0 {
			c.end(at)
		}
		c.addFrame(packet)
		return
	}
	seq := binary.BigEndian.Uint32(tcp[4:])
	size := len(packet) - hdrLen
	hasPush := flags&tcpPSH != 0
	if at >= 0 {
		f := &c.frames[c.open[at]]
		first := c.packets[f.first].data
		if seq == f.nextSeq && hdrLen == f.hdrLen && size <= f.unit && f.hdrLen+f.size+size <= maxPacket &&
			f.count < maxPieces-1 && f.continues(first, packet) {
			index := c.hold(packet)
			c.packets[f.last].next = index
			f.last = index
			f.count++
			f.size += size
			f.nextSeq += uint32(size)
			f.hasPush = hasPush
			if hasPush || size < f.unit {
				c.end(at)
			} else {
				c.use(at)
			}
			return
		}
		c.end(at)
	}
	index := c.addFrame(packet)
	if hasPush {
		return
	}
	f := &c.frames[index]
	f.ports, f.ipLen, f.hdrLen = ports, ipLen, hdrLen
	f.unit, f.size, f.nextSeq = size, size, seq+uint32(size)
	if c.opened < maxRuns {
		c.opened++
	}
	c.open[c.opened-1] = index
	c.use(c.opened - 1)
}

// Frames calls write for each frame: the header of virtio-net and the packet,
// in pieces that must be written to the TUN by a single writev. The frame and
// its pieces are valid only during the call. The frames of one flow are in the
// order of its packets.
//
// All frames are written even if one fails. The error is the first of write's.
func (c *Coalescer) Frames(write func(frame [][]byte) error) error {
	var first error
	for i := range c.frames {
		f := &c.frames[i]
		c.pieces = c.pieces[:0]
		if f.count == 1 {
			clear(c.headers[:HeaderLen])
			c.pieces = append(c.pieces, c.headers[:HeaderLen], c.packets[f.first].data)
		} else {
			c.pieces = append(c.pieces, f.putHeaders(c.headers[:], c.packets[f.first].data))
			for at := f.first; ; at = c.packets[at].next {
				c.pieces = append(c.pieces, c.packets[at].data[f.hdrLen:])
				if at == f.last {
					break
				}
			}
		}
		if err := write(c.pieces); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Reset lets go of all packets.
func (c *Coalescer) Reset() {
	clear(c.packets)
	clear(c.pieces[:cap(c.pieces)])
	c.packets, c.frames, c.pieces = c.packets[:0], c.frames[:0], c.pieces[:0]
	c.opened = 0
}

// hold keeps a packet and returns its index.
func (c *Coalescer) hold(packet []byte) int {
	c.packets = append(c.packets, held{data: packet})
	return len(c.packets) - 1
}

// addFrame adds a frame with one packet and returns its index.
func (c *Coalescer) addFrame(packet []byte) int {
	index := c.hold(packet)
	c.frames = append(c.frames, frame{first: index, last: index, count: 1})
	return len(c.frames) - 1
}

// find returns which open frame is of the packet's flow, or -1.
func (c *Coalescer) find(packet []byte, ipLen int, ports uint32) int {
	for i, index := range c.open[:c.opened] {
		f := &c.frames[index]
		if f.ports == ports && f.ipLen == ipLen &&
			bytes.Equal(addressesOf(c.packets[f.first].data, ipLen), addressesOf(packet, ipLen)) {
			return i
		}
	}
	return -1
}

// use makes an open frame the most recently used one.
func (c *Coalescer) use(at int) {
	if at > 0 {
		index := c.open[at]
		copy(c.open[1:at+1], c.open[:at])
		c.open[0] = index
	}
}

// end keeps an open frame from growing.
func (c *Coalescer) end(at int) {
	copy(c.open[at:], c.open[at+1:c.opened])
	c.opened--
}

// continues says whether the headers of a packet of the same flow, with as
// large headers, say the same as those of the frame's first.
func (f *frame) continues(first, packet []byte) bool {
	if f.ipLen == ip4Len {
		// Type of service with the ECN mark, don't-fragment, time to live.
		if packet[1] != first[1] || packet[6] != first[6] || packet[8] != first[8] {
			return false
		}
		if packet[6]&dontFragment == 0 && uint16(be16(packet[4:])) != uint16(be16(first[4:])+f.count) {
			// Fragments of it may come to another machine, which needs IDs
			// that differ (RFC 6864, section 4.3): those that a later cut
			// counts from the first one.
			return false
		}
	} else if binary.NativeEndian.Uint32(packet) != binary.NativeEndian.Uint32(first) || packet[7] != first[7] {
		// Traffic class with the ECN mark, flow label, hop limit.
		return false
	}
	a, b := packet[f.ipLen:f.hdrLen], first[f.ipLen:f.hdrLen]
	return bytes.Equal(a[8:12], b[8:12]) && // acknowledgement
		bytes.Equal(a[14:16], b[14:16]) && // window
		bytes.Equal(a[18:], b[18:]) // urgent pointer, options
}

// putHeaders writes the header of virtio-net and those of the joined segment to
// b, and returns what it wrote.
func (f *frame) putHeaders(b, first []byte) []byte {
	h := frameHeader{flags: flagNeedsSum, kind: gsoTCP6, hdrLen: f.hdrLen, unit: f.unit, sumStart: f.ipLen, sumAt: tcpSumAt}
	packet := b[HeaderLen : HeaderLen+f.hdrLen]
	copy(packet, first)
	total := f.hdrLen + f.size
	if f.ipLen == ip4Len {
		h.kind = gsoTCP4
		putBE16(packet[2:], total)
		clear(packet[10:12])
		binary.NativeEndian.PutUint16(packet[10:], ^fold(sum(packet[:ip4Len], 0)))
	} else {
		putBE16(packet[4:], total-ip6Len)
	}
	h.put(b)
	tcp := packet[f.ipLen:]
	if f.hasPush {
		tcp[13] |= tcpPSH
	}
	binary.NativeEndian.PutUint16(tcp[tcpSumAt:], fold(pseudoSum(addressesOf(packet, f.ipLen), total-f.ipLen)))
	return b[:HeaderLen+f.hdrLen]
}
