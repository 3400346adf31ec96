package vnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRoundTrip joins random streams of several flows and cuts the frames
// again: the same packets must come back, in the order of their flow.
func TestRoundTrip(t *testing.T) {
	var c Coalescer
	var cutter Segmenter
	joined := 0
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 9))
		batch := randomBatch(random)
		for _, packet := range batch {
			c.Add(packet)
		}
		var got [][]byte
		b := make([]byte, 2048)
		err := c.Frames(func(pieces [][]byte) error {
			frame := bytes.Join(pieces, nil)
			if len(frame) > HeaderLen+maxPacket {
				return fmt.Errorf("a frame has %d bytes", len(frame))
			}
			if frame[1] == 0 && !bytes.Equal(frame[:HeaderLen], make([]byte, HeaderLen)) {
				return fmt.Errorf("the header of a single packet is % x", frame[:HeaderLen])
			}
			packets := 0
			if err := cutter.Start(frame, len(b)); err != nil {
				return err
			}
			for ; cutter.Active(); packets++ {
				n := cutter.Next(b)
				got = append(got, bytes.Clone(b[:n]))
			}
			if frame[1] != 0 {
				joined += packets
			}
			return nil
		})
		c.Reset()
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		gotFlows, wantFlows := byFlow(got), byFlow(batch)
		if len(gotFlows) != len(wantFlows) {
			t.Fatalf("seed %d: %d flows, want %d", seed, len(gotFlows), len(wantFlows))
		}
		for flow, want := range wantFlows {
			if !slices.EqualFunc(gotFlows[flow], want, bytes.Equal) {
				t.Logf("seed %d, flow %x:", seed, flow)
				same(t, gotFlows[flow], want)
			}
		}
	}
	if joined < 1000 {
		t.Errorf("only %d packets were joined, so this test says little", joined)
	}
}

// byFlow sorts packets by their addresses, protocol and ports.
func byFlow(packets [][]byte) map[string][][]byte {
	flows := map[string][][]byte{}
	for _, packet := range packets {
		key := string(packet[12:24]) + string(packet[9])
		if packet[0]>>4 == 6 {
			key = string(packet[8:44]) + string(packet[6])
		}
		flows[key] = append(flows[key], packet)
	}
	return flows
}

// randomBatch returns what a peer could send: flows of TCP, taking turns, whose
// segments are mostly in order and alike, and datagrams.
func randomBatch(random *rand.Rand) [][]byte {
	type flow struct {
		segment
		unit int
	}
	flows := make([]flow, 1+random.IntN(2*maxRuns))
	for i := range flows {
		s := segment{
			v6: random.IntN(2) == 0, port: uint16(i), seq: random.Uint32(), ack: random.Uint32(), window: 100, ttl: 64,
			flags: ack, id: uint16(random.Uint32()), mayFrag: random.IntN(4) == 0, tos: 2,
			options: randomBytes(random, 4*random.IntN(11)),
		}
		flows[i] = flow{s, 1 + random.IntN(1300)}
	}
	var batch [][]byte
	for range random.IntN(400) {
		f := &flows[random.IntN(len(flows))]
		odds := random.IntN(100)
		if odds == 0 {
			// The port tells datagrams of one flow apart from another's.
			packet := datagram(f.v6, 1, randomBytes(random, random.IntN(100)), false)
			batch = append(batch, packet)
			continue
		}
		// Bursts make long runs.
		for range 1 + random.IntN(8) {
			s := f.segment
			s.payload = randomBytes(random, f.unit)
			switch random.IntN(60) {
			case 0:
				s.flags |= psh
			case 1:
				s.payload = s.payload[:random.IntN(f.unit)]
			case 2:
				s.flags |= fin
			case 3:
				s.tos = 3
			case 4:
				f.ack++
			case 5:
				s.flags |= ece
			case 6:
				s.seq -= 100
			case 7:
				s.payload = randomBytes(random, f.unit+1)
			case 8:
				s.id += 5
				s.mayFrag = true
			}
			batch = append(batch, s.build(false))
			f.seq += uint32(len(s.payload))
			f.id++
		}
	}
	return batch
}

// FuzzSegmenter has frames of any content: no panic, no packet beyond its
// bounds, and what is cut adds up.
func FuzzSegmenter(f *testing.F) {
	s := segment{port: 1, ttl: 64, flags: ack | psh, payload: make([]byte, 300), options: make([]byte, 12)}
	f.Add(s.superframe(100), 1420)
	f.Add(rawFrame(1, 5, 28, 100, 20, 6, datagram(false, 1, s.payload, true)), 1420)
	f.Add(rawFrame(1, 0, 0, 0, 20, 16, s.build(true)), 1420)
	s.v6 = true
	f.Add(s.superframe(100), 100)
	s.first, s.extensions = 60, make([]byte, 8)
	f.Add(s.superframe(100), 1280)
	f.Fuzz(func(t *testing.T, frame []byte, mtu int) {
		var s Segmenter
		before := bytes.Clone(frame)
		err := s.Start(frame, mtu)
		if s.Active() != (err == nil) {
			t.Fatalf("active: %v, error: %v", s.Active(), err)
		}
		if err != nil {
			return
		}
		h := parseHeader(before)
		b := make([]byte, maxPacket)
		var payload []byte
		var hdrLen int
		for first := true; s.Active(); first = false {
			n := s.Next(b)
			if n == 0 {
				if len(frame) > len(b) {
					return
				}
				t.Fatal("the segmenter gave up")
			}
			hdrLen = h.sumStart + udpLen
			switch h.kind &^ gsoECN {
			case gsoNone:
				if first && n == mtu && mayCut(before[HeaderLen:], h, mtu) {
					return
				}
				if n != len(before)-HeaderLen || !first {
					t.Fatalf("a single packet of %d bytes became one of %d", len(before)-HeaderLen, n)
				}
				return
			case gsoTCP4, gsoTCP6:
				hdrLen = h.sumStart + int(b[h.sumStart+12]>>4)*4
				if n > mtu {
					t.Fatalf("%d bytes are more than %d", n, mtu)
				}
			}
			if n > hdrLen+h.unit {
				t.Fatalf("%d bytes in a segment, more than %d", n-hdrLen, h.unit)
			}
			payload = append(payload, b[hdrLen:n]...)
		}
		if !bytes.Equal(payload, before[HeaderLen+hdrLen:]) {
			t.Fatalf("%d bytes of payload became %d", len(before)-HeaderLen-hdrLen, len(payload))
		}
	})
}

// FuzzCoalescer has batches of any content: each packet begins with its length
// in two bytes.
// The packets come back when the frames are cut again.
func FuzzCoalescer(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		var seed []byte
		for _, packet := range randomBatch(random) {
			if len(seed) < 4000 {
				seed = append(binary.BigEndian.AppendUint16(seed, uint16(len(packet))), packet...)
			}
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Coalescer
		count := map[string]int{}
		for len(data) >= 2 {
			n := min(be16(data), len(data)-2)
			packet := data[2 : 2+n : 2+n]
			data = data[2+n:]
			if n > 0 {
				c.Add(packet)
				count[withoutID(packet)]++
			}
		}
		var s Segmenter
		b := make([]byte, maxPacket+1)
		err := c.Frames(func(pieces [][]byte) error {
			frame := bytes.Join(pieces, nil)
			if len(pieces) > maxPieces {
				return fmt.Errorf("%d pieces", len(pieces))
			}
			if err := s.Start(frame, len(b)); err != nil {
				return err
			}
			for s.Active() {
				count[withoutID(b[:s.Next(b)])]--
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for packet, n := range count {
			if n != 0 {
				t.Errorf("%d of packet % x were lost", n, head([]byte(packet)))
			}
		}
	})
}

// withoutID returns a packet without what need not come back: checksums, and
// where nothing may be fragmented the ID of IPv4.
func withoutID(packet []byte) string {
	b := bytes.Clone(packet)
	ipLen, what := classify(b)
	if what != plainTCP {
		return string(b)
	}
	if ipLen == ip4Len {
		clear(b[10:12])
		if b[6]&dontFragment != 0 {
			clear(b[4:6])
		}
	}
	clear(b[ipLen+tcpSumAt:][:2])
	return string(b)
}
