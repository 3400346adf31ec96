package tunnel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
)

// packetsTo returns packets to an address, and their sizes.
func packetsTo(address string, n int) (bufs [][]byte, sizes []int) {
	to := netip.MustParseAddr(address)
	for range n {
		packet := make([]byte, 40)
		if to.Is4() {
			packet[0] = 0x45
			copy(packet[16:], to.AsSlice())
		} else {
			packet[0] = 0x60
			copy(packet[24:], to.AsSlice())
		}
		bufs, sizes = append(bufs, packet), append(sizes, len(packet))
	}
	return bufs, sizes
}

// passed is how many packets of a batch to an address go into wireguard-go.
func passed(s *stalls, address string, n int) (count int, bufs [][]byte) {
	bufs, sizes := packetsTo(address, n)
	s.enter(bufs, sizes, n, 0)
	for _, size := range sizes {
		if size > 0 {
			count++
		}
	}
	return count, bufs
}

func everybody(netip.Addr) bool { return true }

// Who has a session is never taken for absent, however slow the machine.
func TestStallsLetsSessionsBe(t *testing.T) {
	absent := false
	s := newStalls(func(netip.Addr) bool { return absent })
	for i := range 20 {
		if n, _ := passed(s, "10.77.0.2", 128); n != 128 {
			t.Fatalf("batch %d: %d packets passed", i, n)
		}
	}
	absent = true
	s.look()
	if n, _ := passed(s, "10.77.0.2", 128); n != 1 {
		t.Errorf("%d packets passed to who is absent now", n)
	}
}

func TestStalls(t *testing.T) {
	for _, address := range []string{"10.77.0.2", "fd77::2"} {
		t.Run(address, func(t *testing.T) {
			s := newStalls(everybody)
			for i := range 100 {
				if n, bufs := passed(s, address, 128); n != 128 {
					t.Fatalf("batch %d: %d packets passed while all leave", i, n)
				} else {
					s.leave(bufs[100:])
				}
			}
			total := 0
			for range 100 {
				n, _ := passed(s, address, 128)
				total += n
			}
			if total < stalledAt || total > stalledAt+100 {
				t.Errorf("%d packets passed while none left", total)
			}
			if n, _ := passed(s, "10.77.0.3", 128); n != 128 {
				t.Errorf("%d packets passed to another destination", n)
			}
			// The one that begins a handshake is answered.
			n, bufs := passed(s, address, 128)
			if n != 1 {
				t.Errorf("%d packets of a batch passed, want 1", n)
			}
			s.leave(bufs[:1])
			if n, _ := passed(s, address, 128); n != 128 {
				t.Errorf("%d packets passed when they leave again", n)
			}
		})
	}
}

// A buffer in which another packet leaves says nothing of the one before.
func TestStallsForgetsBuffers(t *testing.T) {
	s := newStalls(everybody)
	bufs, sizes := packetsTo("10.77.0.2", 1)
	for range 2 * stalledAt {
		s.enter(bufs, sizes, 1, 0)
	}
	other, _ := packetsTo("10.77.0.3", 1)
	copy(bufs[0], other[0])
	s.enter(bufs, sizes, 1, 0)
	s.leave(bufs)
	if n, _ := passed(s, "10.77.0.2", 10); n != 1 {
		t.Errorf("%d packets passed, want 1", n)
	}
	if len(s.marks) != 1 {
		t.Errorf("%d marks", len(s.marks))
	}
}

func TestStallsBound(t *testing.T) {
	s := newStalls(everybody)
	for i := range 3 * destinationsMax {
		var address [4]byte
		binary.BigEndian.PutUint32(address[:], uint32(10<<24+i))
		_, bufs := passed(s, netip.AddrFrom4(address).String(), 2)
		if i%2 == 0 {
			s.leave(bufs)
		}
		if len(s.destinations) > destinationsMax {
			t.Fatalf("%d destinations", len(s.destinations))
		}
	}
}

// Anybody can flood a relayed UDP port while home is away.
func TestFloodToAbsentPeer(t *testing.T) {
	for _, stack := range []StackChoice{StackKernel, StackGvisor} {
		t.Run(string(stack), func(t *testing.T) {
			config, _ := ends(t)
			config.Stack = stack
			c := claim(t, New("relay"), config)
			conn, err := c.DialUDP(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(homeAddress, 9))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			heap := func() int64 {
				runtime.GC()
				var stats runtime.MemStats
				runtime.ReadMemStats(&stats)
				return int64(stats.HeapAlloc)
			}
			before := heap()
			datagram := make([]byte, 200)
			for range 60_000 {
				// A full queue is an error that a flood does not mind.
				_, _ = conn.Write(datagram)
			}
			l := c.tunnel.live
			await(t, func() error {
				l.out.mu.Lock()
				defer l.out.mu.Unlock()
				if l.out.entered <= 2*stalledAt {
					return fmt.Errorf("%d packets of the flood have come", l.out.entered)
				}
				return nil
			})
			// 128 reads of one packet each may wait after those that came first.
			if grown := heap() - before; grown > 2*stalledAt<<16 {
				t.Errorf("a flood takes %d MiB", grown>>20)
			}
		})
	}
}

func BenchmarkStalls(b *testing.B) {
	s := newStalls(everybody)
	bufs, sizes := packetsTo("10.77.0.2", 128)
	for b.Loop() {
		s.enter(bufs, sizes, len(bufs), 0)
		s.leave(bufs)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/128, "ns/packet")
}
