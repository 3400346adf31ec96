package vnet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// superpacket is 64 KiB of TCP with timestamps, whose segments have 1420 bytes.
func superpacket(v6 bool) (s segment, unit int) {
	s = segment{v6: v6, port: 40000, seq: 1 << 31, ack: 1, window: 500, ttl: 64, flags: ack, options: make([]byte, 12)}
	unit = 1420 - s.hdrLen()
	s.payload = randomBytes(rand.New(rand.NewPCG(3, 3)), maxPacket-s.hdrLen())
	return s, unit
}

func BenchmarkSegment(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		b.Run(fmt.Sprintf("ipv6=%v", v6), func(b *testing.B) {
			s, unit := superpacket(v6)
			frame := s.superframe(unit)
			head := bytes.Clone(frame[:HeaderLen+s.hdrLen()])
			out := make([][]byte, 128)
			for i := range out {
				out[i] = make([]byte, 2048)
			}
			var cutter Segmenter
			b.SetBytes(int64(len(s.payload)))
			b.ReportAllocs()
			packets := 0
			for b.Loop() {
				copy(frame, head)
				if err := cutter.Start(frame, 1420); err != nil {
					b.Fatal(err)
				}
				for packets = 0; cutter.Active(); packets++ {
					cutter.Next(out[packets][16:])
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*packets), "ns/packet")
			perGiB(b, len(s.payload))
		})
	}
}

func BenchmarkCoalesce(b *testing.B) {
	for _, flows := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			// The packets of 46/flows bursts take turns.
			s, unit := superpacket(false)
			s.payload = s.payload[:46/flows*unit]
			var batch [][]byte
			for i := range 46 / flows {
				for flow := range flows {
					s.port = uint16(40000 + flow)
					batch = append(batch, s.cut(unit)[i])
				}
			}
			var c Coalescer
			written, payload := 0, flows*len(s.payload)
			write := func(frame [][]byte) error { written++; return nil }
			b.SetBytes(int64(payload))
			b.ReportAllocs()
			for b.Loop() {
				written = 0
				for _, packet := range batch {
					c.Add(packet)
				}
				c.Frames(write)
				c.Reset()
			}
			if written != flows {
				b.Fatalf("%d flows became %d frames", flows, written)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/packet")
			perGiB(b, payload)
		})
	}
}

// perGiB reports what 1 GiB of payload costs, for size bytes of it in each
// iteration.
func perGiB(b *testing.B, size int) {
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/float64(size)*(1<<30), "CPU-s/GiB")
}

// TestAllocatesNothing keeps what the benchmarks show: nothing is allocated for
// a frame or a batch once the first has passed.
func TestAllocatesNothing(t *testing.T) {
	s, unit := superpacket(false)
	frame, batch := s.superframe(unit), s.cut(unit)
	original := bytes.Clone(frame)
	var cutter Segmenter
	var joiner Coalescer
	out := make([]byte, 2048)
	write := func([][]byte) error { return nil }
	for name, f := range map[string]func(){
		"segmenter": func() {
			copy(frame, original)
			if err := cutter.Start(frame, 1420); err != nil {
				t.Error(err)
			}
			for cutter.Active() {
				cutter.Next(out)
			}
		},
		"coalescer": func() {
			for _, packet := range batch {
				joiner.Add(packet)
			}
			joiner.Frames(write)
			joiner.Reset()
		},
	} {
		if n := testing.AllocsPerRun(20, f); n != 0 {
			t.Errorf("the %s allocates %v times", name, n)
		}
	}
}
