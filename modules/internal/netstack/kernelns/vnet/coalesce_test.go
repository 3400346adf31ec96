package vnet

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// alone is the frame of a packet that was not joined.
func alone(packet []byte) []byte { return append(make([]byte, HeaderLen), packet...) }

func TestCoalescerJoins(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	base := segment{port: 1, seq: 1<<32 - 3000, ack: 9, window: 77, ttl: 64, tos: 2, flow: 0x12345, id: 1<<16 - 2}
	tests := []struct {
		name   string
		change func(*segment)
		size   int
		unit   int
	}{
		{"whole segments", func(s *segment) { s.flags = ack }, 5000, 1000},
		{"short last one", func(s *segment) { s.flags = ack }, 5001, 1000},
		{"push on the last", func(s *segment) { s.flags = ack | psh }, 5500, 1000},
		{"odd segments", func(s *segment) { s.flags = ack }, 2345, 333},
		{"options", func(s *segment) { s.flags, s.options = ack, randomBytes(random, 40) }, 4000, 1000},
		{"may be fragmented", func(s *segment) { s.flags, s.mayFrag = ack, true }, 4000, 1000},
		{"two segments", func(s *segment) { s.flags = ack | psh }, 2, 1},
		{"as much as fits", func(s *segment) { s.flags = ack }, maxPacket - 60, 1400},
	}
	for _, test := range tests {
		for name, v6 := range map[string]bool{" IPv4": false, " IPv6": true} {
			t.Run(test.name+name, func(t *testing.T) {
				s := base
				s.v6 = v6
				test.change(&s)
				s.payload = randomBytes(random, test.size)
				same(t, frames(t, s.cut(test.unit)), [][]byte{s.superframe(test.unit)})
			})
		}
	}
}

// TestCoalescerJoinsFlows has flows that take turns, as many as are joined at
// the same time, and ACKs and datagrams between them.
func TestCoalescerJoinsFlows(t *testing.T) {
	var flows [][][]byte
	var want [][]byte
	for i := range maxRuns {
		s := segment{v6: i%2 == 1, port: uint16(i), ttl: 64, flags: ack | psh, payload: make([]byte, 4000+i)}
		flows = append(flows, s.cut(1000))
		want = append(want, s.superframe(1000))
	}
	others := [][]byte{
		datagram(false, 1, make([]byte, 100), false), datagram(true, 1, make([]byte, 100), false),
		segment{port: 999, ttl: 64, flags: ack}.build(false), {0x10, 2, 3}, {0x45}, {0x60},
	}
	var batch [][]byte
	for turn := range 5 {
		for _, flow := range flows {
			if turn < len(flow) {
				batch = append(batch, flow[turn])
			}
		}
		batch = append(batch, others[turn])
	}
	batch = append(batch, others[5])
	got := frames(t, batch)
	for _, packet := range others {
		want = append(want, alone(packet))
	}
	sortFrames(got)
	sortFrames(want)
	same(t, got, want)
}

func sortFrames(frames [][]byte) { slices.SortFunc(frames, bytes.Compare) }

func TestCoalescerForgetsLeastUsedFlow(t *testing.T) {
	var flows [][][]byte
	for i := range maxRuns + 1 {
		flows = append(flows, segment{port: uint16(i), ttl: 64, flags: ack, payload: make([]byte, 3000)}.cut(1000))
	}
	var batch [][]byte
	for i := range maxRuns {
		batch = append(batch, flows[i][0])
	}
	batch = append(batch, flows[0][1])
	batch = append(batch, flows[maxRuns][0]) // pushes flow 1 out, not flow 0
	batch = append(batch, flows[0][2], flows[1][1], flows[maxRuns][1])
	if got := frames(t, batch); len(got) != maxRuns+2 {
		t.Errorf("%d frames, want %d", len(got), maxRuns+2)
	}
}

// TestCoalescerKeepsApart has pairs of packets that must not become one.
func TestCoalescerKeepsApart(t *testing.T) {
	base := segment{port: 1, seq: 100, ack: 5, window: 9, ttl: 64, flags: ack, id: 7, options: make([]byte, 12), payload: make([]byte, 1000)}
	base6 := base
	base6.v6 = true
	// next is the segment that follows s, but for a change.
	next := func(s segment, change func(*segment)) []byte {
		s.seq += uint32(len(s.payload))
		s.id++
		change(&s)
		return s.build(false)
	}
	raw := func(packet []byte, at int, value byte) []byte {
		packet[at] = value
		return withRightSums(packet)
	}
	same4 := func(*segment) {}
	tests := []struct {
		name          string
		first, second []byte
	}{
		{"port", base.build(false), next(base, func(s *segment) { s.port = 2 })},
		{"version", base.build(false), next(base6, same4)},
		{"gap", base.build(false), next(base, func(s *segment) { s.seq++ })},
		{"again", base.build(false), base.build(false)},
		{"acknowledgement", base.build(false), next(base, func(s *segment) { s.ack++ })},
		{"window", base.build(false), next(base, func(s *segment) { s.window++ })},
		{"option", base.build(false), next(base, func(s *segment) { s.options = []byte{11: 1} })},
		{"options' length", base.build(false), next(base, func(s *segment) { s.options = make([]byte, 8) })},
		{"ECN mark", base.build(false), next(base, func(s *segment) { s.tos = 3 })},
		{"DSCP", base.build(false), next(base, func(s *segment) { s.tos = 8 })},
		{"time to live", base.build(false), next(base, func(s *segment) { s.ttl-- })},
		{"don't-fragment", base.build(false), next(base, func(s *segment) { s.mayFrag = true })},
		{"traffic class", base6.build(false), next(base6, func(s *segment) { s.tos = 3 })},
		{"flow label", base6.build(false), next(base6, func(s *segment) { s.flow = 1 })},
		{"hop limit", base6.build(false), next(base6, func(s *segment) { s.ttl-- })},
		{"larger", base.build(false), next(base, func(s *segment) { s.payload = make([]byte, 1001) })},
		{"empty", base.build(false), next(base, func(s *segment) { s.payload = nil })},
		{"FIN", base.build(false), next(base, func(s *segment) { s.flags |= fin })},
		{"RST", base.build(false), next(base, func(s *segment) { s.flags |= header.TCPFlagRst })},
		{"SYN", base.build(false), next(base, func(s *segment) { s.flags |= header.TCPFlagSyn })},
		{"URG", base.build(false), next(base, func(s *segment) { s.flags |= header.TCPFlagUrg })},
		{"ECE", base.build(false), next(base, func(s *segment) { s.flags |= ece })},
		{"CWR", base.build(false), next(base, func(s *segment) { s.flags |= cwr })},
		{"no ACK", base.build(false), next(base, func(s *segment) { s.flags = 0 })},
		{"after push", segment{port: 1, flags: ack | psh, payload: make([]byte, 5)}.build(false), segment{port: 1, seq: 5, flags: ack, payload: make([]byte, 5)}.build(false)},
		{"ID of what may be fragmented", func() []byte { s := base; s.mayFrag = true; return s.build(false) }(),
			next(base, func(s *segment) { s.mayFrag = true; s.id++ })},
		{"fragment", base.build(false), raw(next(base, same4), 6, 0x20)},
		{"last fragment", base.build(false), raw(next(base, same4), 7, 1)},
		{"source", base.build(false), raw(next(base, same4), 15, 3)},
		{"destination", base.build(false), raw(next(base, same4), 19, 3)},
		{"IPv6 source", base6.build(false), raw(next(base6, same4), 8, 3)},
		{"IPv6 destination", base6.build(false), raw(next(base6, same4), 39, 3)},
		{"reserved bit of TCP", base.build(false), raw(next(base, same4), 32, 0x81)},
		{"urgent pointer", base.build(false), raw(next(base, same4), 39, 1)},
		{"TCP header beyond the packet", base.build(false), segment{port: 1, seq: 1100, flags: ack, options: make([]byte, 8)}.build(false)[:40]},
		{"cut off", base.build(false), withRightSums(next(base, same4)[:900])},
		{"cut off IPv6", base6.build(false), withRightSums(next(base6, same4)[:900])},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			same(t, frames(t, [][]byte{test.first, test.second}), [][]byte{alone(test.first), alone(test.second)})
		})
	}
	t.Run("nothing", func(t *testing.T) {
		same(t, frames(t, [][]byte{base.build(false), next(base, same4)}), [][]byte{func() []byte {
			s := base
			s.payload = make([]byte, 2000)
			return s.superframe(1000)
		}()})
	})
}

// withRightSums changes the checksums of a packet to those that its bytes have.
func withRightSums(packet []byte) []byte {
	ipLen := header.IPv6MinimumSize
	addresses := packet[8:40]
	if packet[0]>>4 == 4 {
		ipLen = header.IPv4MinimumSize
		addresses = packet[12:20]
		ip := header.IPv4(packet)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	tcp := header.TCP(packet[ipLen:])
	tcp.SetChecksum(0)
	pseudo := checksum.Combine(checksum.Checksum(addresses, protocolTCP), uint16(len(tcp)))
	tcp.SetChecksum(^checksum.Checksum(tcp, pseudo))
	return packet
}

// TestCoalescerKeepsOrder has packets that end the run of their flow, and then
// the rest of it.
func TestCoalescerKeepsOrder(t *testing.T) {
	s := segment{port: 1, ttl: 64, flags: ack, payload: make([]byte, 4000)}
	packets := s.cut(1000)
	firstHalf, secondHalf := s, s
	firstHalf.payload = s.payload[:2000]
	secondHalf.payload = s.payload[2000:]
	secondHalf.seq, secondHalf.id = 2000, 2
	optionIP := append([]byte{0x46, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2, 1, 1, 1, 1}, s.build(false)[20:40]...)
	for name, between := range map[string][]byte{
		"ACK":                    segment{port: 1, seq: 2000, ttl: 64, flags: ack}.build(false),
		"FIN":                    segment{port: 1, seq: 2000, ttl: 64, flags: ack | fin}.build(false),
		"options of IPv4":        optionIP,
		"IPv6 with an extension": segment{v6: true, first: 60, extensions: make([]byte, 8)}.build(false),
		"no TCP header":          {0x45, 3: 24, 9: 6, 23: 0},
		"no TCP header in IPv6":  {0x60, 5: 4, 6: 6, 43: 0},
		"a later segment":        segment{port: 1, seq: 9000, ttl: 64, flags: ack | psh, payload: make([]byte, 10)}.build(false),
	} {
		t.Run(name, func(t *testing.T) {
			got := frames(t, [][]byte{packets[0], packets[1], between, packets[2], packets[3]})
			same(t, got, [][]byte{firstHalf.superframe(1000), alone(between), secondHalf.superframe(1000)})
		})
	}
	// What is certainly of no flow of TCP does not end anything.
	for name, between := range map[string][]byte{
		"UDP":           datagram(false, 1, nil, false),
		"UDP over IPv6": datagram(true, 1, nil, false),
		"another flow":  segment{port: 2, ttl: 64, flags: ack}.build(false),
	} {
		t.Run(name, func(t *testing.T) {
			got := frames(t, [][]byte{packets[0], packets[1], between, packets[2], packets[3]})
			same(t, got, [][]byte{s.superframe(1000), alone(between)})
		})
	}
}

func TestCoalescerBoundsFrames(t *testing.T) {
	for name, test := range map[string]struct{ size, unit, want int }{
		"bytes":  {maxPacket - 39, 1000, 2},
		"pieces": {maxPieces, 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := segment{port: 1, ttl: 64, flags: ack, payload: make([]byte, test.size)}
			got := frames(t, s.cut2(test.unit))
			var size int
			for _, frame := range got {
				size += len(frame) - HeaderLen - 40
			}
			if len(got) != test.want || size != test.size {
				t.Errorf("%d frames with %d bytes, want %d with %d", len(got), size, test.want, test.size)
			}
		})
	}
}

// cut2 is cut for more than a packet can have.
func (s segment) cut2(unit int) [][]byte {
	half := s
	half.payload = s.payload[:len(s.payload)/2/unit*unit]
	rest := s
	rest.payload = s.payload[len(half.payload):]
	rest.seq += uint32(len(half.payload))
	rest.id += uint16(len(half.payload) / unit)
	return append(half.cut(unit), rest.cut(unit)...)
}

func TestCoalescerWritesAllInSpiteOfErrors(t *testing.T) {
	var c Coalescer
	failure := errors.New("no")
	for round := range 3 {
		for port := range 4 {
			for _, packet := range (segment{port: uint16(port), flags: ack, payload: make([]byte, 100*port+100)}).cut(100) {
				c.Add(packet)
			}
		}
		c.Add(nil)
		calls := 0
		err := c.Frames(func(frame [][]byte) error {
			calls++
			if len(frame) != calls+1 || len(frame[0]) < HeaderLen {
				t.Errorf("frame %d has %d pieces", calls, len(frame))
			}
			switch calls {
			case 2:
				return failure
			case 3:
				return errors.New("another")
			}
			return nil
		})
		if !errors.Is(err, failure) || calls != 4 {
			t.Errorf("round %d: %d calls, error %v", round, calls, err)
		}
		c.Reset()
	}
	if err := c.Frames(func([][]byte) error { t.Error("a frame is left"); return nil }); err != nil {
		t.Error(err)
	}
}
