package stacktest

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// IP protocol numbers and TCP flags.
const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58

	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// ipPacket makes an IP packet with a correct header and, for the protocols
// above, a correct checksum in the payload, which it overwrites.
func ipPacket(from, to netip.Addr, protocol byte, payload []byte) []byte {
	var packet []byte
	if from.Is4() {
		packet = make([]byte, 20, 20+len(payload))
		packet[0] = 0x45
		binary.BigEndian.PutUint16(packet[2:], uint16(20+len(payload)))
		packet[8] = 64
		packet[9] = protocol
		copy(packet[12:], from.AsSlice())
		copy(packet[16:], to.AsSlice())
		binary.BigEndian.PutUint16(packet[10:], ^sum(packet))
	} else {
		packet = make([]byte, 40, 40+len(payload))
		packet[0] = 0x60
		binary.BigEndian.PutUint16(packet[4:], uint16(len(payload)))
		packet[6] = protocol
		packet[7] = 64
		copy(packet[8:], from.AsSlice())
		copy(packet[24:], to.AsSlice())
	}
	at := map[byte]int{protocolICMP: 2, protocolICMPv6: 2, protocolTCP: 16, protocolUDP: 6}[protocol]
	if at > 0 && len(payload) >= at+2 {
		covered := payload
		if protocol != protocolICMP {
			covered = append(append(from.AsSlice(), to.AsSlice()...), 0, protocol, byte(len(payload)>>8), byte(len(payload)))
			covered = append(covered, payload...)
			if len(covered)%2 == 1 {
				covered = append(covered, 0)
			}
		}
		binary.BigEndian.PutUint16(payload[at:], ^sum(covered))
	}
	return append(packet, payload...)
}

// sum is the ones' complement sum of RFC 1071.
func sum(b []byte) uint16 {
	var total uint32
	for i := 0; i < len(b); i += 2 {
		total += uint32(b[i]) << 8
		if i+1 < len(b) {
			total += uint32(b[i+1])
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// synPacket makes a SYN from port 40000.
func synPacket(from, to netip.Addr, port uint16) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp[0:], 40000)
	binary.BigEndian.PutUint16(tcp[2:], port)
	binary.BigEndian.PutUint32(tcp[4:], 1)
	tcp[12] = 5 << 4
	tcp[13] = flagSYN
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	return ipPacket(from, to, protocolTCP, tcp)
}

// udpPacket makes a datagram from port 40000.
func udpPacket(from, to netip.Addr, port uint16, payload string) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp[0:], 40000)
	binary.BigEndian.PutUint16(udp[2:], port)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	return ipPacket(from, to, protocolUDP, append(udp, payload...))
}

// echoPacket makes an ICMP echo request.
func echoPacket(from, to netip.Addr, seq uint16, payload string) []byte {
	echo := []byte{8, 0, 0, 0, 0x12, 0x34, byte(seq >> 8), byte(seq)}
	protocol := byte(protocolICMP)
	if from.Is6() {
		echo[0], protocol = 128, protocolICMPv6
	}
	return ipPacket(from, to, protocol, append(echo, payload...))
}

// parsed is what a test wants to know of a packet.
type parsed struct {
	from, to netip.Addr
	protocol byte
	payload  []byte
}

func parsePacket(packet []byte) parsed {
	var p parsed
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		p.from, _ = netip.AddrFromSlice(packet[12:16])
		p.to, _ = netip.AddrFromSlice(packet[16:20])
		p.protocol = packet[9]
		p.payload = packet[int(packet[0]&15)*4:]
	case len(packet) >= 40 && packet[0]>>4 == 6:
		p.from, _ = netip.AddrFromSlice(packet[8:24])
		p.to, _ = netip.AddrFromSlice(packet[24:40])
		p.protocol = packet[6]
		p.payload = packet[40:]
	}
	return p
}

// isEchoReply says whether the packet answers an echo request of f.there.
func (p parsed) isEchoReply(f family, seq uint16) bool {
	reply, protocol := byte(0), byte(protocolICMP)
	if f.here.Is6() {
		reply, protocol = 129, protocolICMPv6
	}
	return p.from == f.here && p.to == f.there && p.protocol == protocol && len(p.payload) >= 8 &&
		p.payload[0] == reply && binary.BigEndian.Uint16(p.payload[6:]) == seq
}

// wire is the bare end of one stack's device.
type wire struct {
	t       *testing.T
	stack   netstack.Stack
	packets chan []byte
	done    sync.WaitGroup
}

// newWire reads the device of a stack until the stack is closed, which it does
// at the end of the test.
func newWire(t *testing.T, stack netstack.Stack) *wire {
	w := &wire{t: t, stack: stack, packets: make(chan []byte, 10000)}
	w.done.Go(func() {
		device := stack.Device()
		bufs, sizes := make([][]byte, device.BatchSize()), make([]int, device.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, headroom+1<<16)
		}
		for {
			n, err := device.Read(bufs, sizes, headroom)
			if err != nil {
				return
			}
			for i := range n {
				packet := append([]byte(nil), bufs[i][headroom:headroom+sizes[i]]...)
				select {
				case w.packets <- packet:
				default:
				}
			}
		}
	})
	t.Cleanup(func() {
		stack.Close()
		w.done.Wait()
	})
	return w
}

// send writes packets to the stack, with headroom as WireGuard does.
func (w *wire) send(packets ...[]byte) {
	w.t.Helper()
	bufs := make([][]byte, len(packets))
	for i, packet := range packets {
		bufs[i] = append(make([]byte, headroom), packet...)
	}
	if n, err := w.stack.Device().Write(bufs, headroom); err != nil || n != len(bufs) {
		w.t.Errorf("device wrote %d of %d packets: %v", n, len(bufs), err)
	}
}

// ping has an echo request answered. It is repeated, since a stack that has
// been flooded may drop it. Packets that come before the answer go to other,
// unless it is nil.
func (w *wire) ping(f family, seq uint16, other func(parsed)) {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		w.send(echoPacket(f.there, f.here, seq, "ping"))
		retry := time.After(200 * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case packet := <-w.packets:
				p := parsePacket(packet)
				if p.isEchoReply(f, seq) {
					return
				}
				if other != nil {
					other(p)
				}
			case <-retry:
				waiting = false
			}
		}
	}
	w.t.Fatal("no echo reply came")
}

// want returns the next packet that match likes; others are passed over.
func (w *wire) want(what string, match func(parsed) bool) parsed {
	w.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case packet := <-w.packets:
			if p := parsePacket(packet); match(p) {
				return p
			}
		case <-timeout:
			w.t.Fatalf("no %s came", what)
		}
	}
}
