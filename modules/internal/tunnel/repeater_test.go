package tunnel

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// tcpPacket makes a segment with a payload of so many bytes.
func tcpPacket(source, destination string, from, to uint16, sequence uint32, flags byte, payload int) []byte {
	src, dst := netip.MustParseAddr(source), netip.MustParseAddr(destination)
	header := ipv4.HeaderLen
	if src.Is6() {
		header = ipv6.HeaderLen
	}
	packet := make([]byte, header+tcpHeader+payload)
	if src.Is4() {
		packet[0], packet[protocolAt] = 0x45, tcpProtocol
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		copy(packet[12:], src.AsSlice())
		copy(packet[16:], dst.AsSlice())
	} else {
		packet[0], packet[nextHeaderAt] = 0x60, tcpProtocol
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-header))
		copy(packet[8:], src.AsSlice())
		copy(packet[24:], dst.AsSlice())
	}
	tcp := packet[header:]
	binary.BigEndian.PutUint16(tcp, from)
	binary.BigEndian.PutUint16(tcp[2:], to)
	binary.BigEndian.PutUint32(tcp[4:], sequence)
	tcp[12], tcp[13] = tcpHeader/4<<4, flags|0x10
	return packet
}

// repeating is a repeater with what it has woken.
type repeating struct {
	*repeater
	woken []netip.Addr
}

func newRepeating() *repeating {
	r := new(repeating)
	r.repeater = newRepeater(func(host netip.Addr) { r.woken = append(r.woken, host) })
	return r
}

// send has packets leave, and returns how many did.
func (r *repeating) send(packets ...[]byte) int {
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 1500)
	}
	for i, packet := range packets {
		sizes[i] = copy(bufs[i], packet)
	}
	return r.sent(bufs, sizes, len(packets), 0)
}

func TestRepeater(t *testing.T) {
	for _, ends := range [][2]string{{"10.77.0.1", "10.77.0.2"}, {"fd77::1", "fd77::2"}} {
		relay, home := ends[0], ends[1]
		data := func(sequence uint32) []byte { return tcpPacket(relay, home, 1000, 22, sequence, 0, 10) }
		answer := func(from uint16) []byte { return tcpPacket(home, relay, from, 1000, 1, 0, 0) }
		anybody := func(netip.Addr) bool { return true }
		for _, tt := range []struct {
			name string
			do   func(r *repeating)
			want int // packets that leave again
		}{
			{"sent twice", func(r *repeating) { r.send(data(1)); r.send(data(1)); r.heard(anybody) }, 1},
			{"sent once", func(r *repeating) { r.send(data(1)); r.heard(anybody) }, 0},
			{"nothing sent", func(r *repeating) { r.heard(anybody) }, 0},
			{"another peer is heard", func(r *repeating) {
				r.send(data(1))
				r.send(data(1))
				r.heard(func(netip.Addr) bool { return false })
			}, 0},
			{"answered", func(r *repeating) {
				r.send(data(1))
				r.send(data(1))
				r.received([][]byte{answer(22)}, 0)
				r.heard(anybody)
			}, 0},
			{"another connection is answered", func(r *repeating) {
				r.send(data(1))
				r.send(data(1))
				r.received([][]byte{answer(80)}, 0)
			}, 1},
			{"later data is not what waits", func(r *repeating) {
				r.send(data(1), data(11))
				r.send(data(1))
				r.send(data(21))
				r.heard(anybody)
			}, 1},
			{"back to older data", func(r *repeating) { r.send(data(11)); r.send(data(1)); r.heard(anybody) }, 1},
			{"repeated once only", func(r *repeating) {
				r.send(data(1))
				r.send(data(1))
				r.heard(anybody)
				r.send()
				r.heard(anybody)
			}, 0},
			{"a SYN", func(r *repeating) {
				for range 2 {
					r.send(tcpPacket(relay, home, 1000, 22, 1, tcpSYN, 0))
				}
				r.heard(anybody)
			}, 1},
			{"pure acknowledgements", func(r *repeating) {
				for range 2 {
					r.send(tcpPacket(relay, home, 1000, 22, 1, 0, 0))
				}
				r.heard(anybody)
			}, 0},
			{"while home is heard", func(r *repeating) {
				r.received([][]byte{answer(80)}, 0)
				// However long the next lines take.
				r.hosts[netip.MustParseAddr(home)].heard = time.Since(r.start) + time.Hour
				r.send(data(1))
				r.send(data(1))
				r.heard(anybody)
			}, 0},
		} {
			t.Run(tt.name+" "+relay, func(t *testing.T) {
				r := newRepeating()
				tt.do(r)
				if got := r.send(); got != tt.want {
					t.Errorf("%d packets left, want %d", got, tt.want)
				}
				if tt.want > 0 && (len(r.woken) != 1 || r.woken[0] != netip.MustParseAddr(home)) {
					t.Errorf("woken by %v", r.woken)
				}
			})
		}
	}
}

func TestRepeaterBounds(t *testing.T) {
	r := newRepeating()
	for i := range 3 * heldSegments {
		packet := tcpPacket("10.77.0.1", "10.77.0.2", uint16(i), uint16(i>>16)+1, 1, 0, 10)
		r.send(packet)
		r.send(packet)
	}
	if r.segments > heldSegments {
		t.Errorf("%d segments are held", r.segments)
	}
	r.heard(func(netip.Addr) bool { return true })
	left := 0
	for n := r.send(); n > 0; n = r.send() {
		left += n
	}
	if left != heldSegments || r.segments != 0 {
		t.Errorf("%d left, %d are held", left, r.segments)
	}
	for i := range 3 * heldHosts {
		to := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()
		r.send(tcpPacket("10.77.0.1", to, 1, 2, 1, 0, 10))
		if len(r.hosts) > heldHosts {
			t.Fatalf("%d hosts", len(r.hosts))
		}
	}
}

func FuzzRepeater(f *testing.F) {
	f.Add(tcpPacket("10.77.0.1", "10.77.0.2", 1, 2, 3, 0, 10))
	f.Add(tcpPacket("fd77::1", "fd77::2", 1, 2, 3, tcpSYN, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		r := newRepeating()
		r.send(packet[:min(len(packet), 1500)])
		r.send(packet[:min(len(packet), 1500)])
		r.received([][]byte{packet}, 0)
		r.heard(func(netip.Addr) bool { return true })
		if n := r.send(); n > 1 {
			t.Errorf("%d packets of one", n)
		}
	})
}
