package stacktest

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// testBadPackets writes nonsense. Nothing may panic, and the stack must still
// work.
func testBadPackets(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	w := newWire(t, stack)
	listener, err := stack.ListenTCP(netip.MustParseAddrPort("[::]:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	random := rand.New(rand.NewPCG(1, 2))
	for _, f := range families {
		for _, good := range [][]byte{
			synPacket(f.there, f.here, 80),
			udpPacket(f.there, f.here, 80, "payload"),
			echoPacket(f.there, f.here, 1, "payload"),
			ipPacket(f.there, f.here, 99, []byte("unknown")),
			ipPacket(f.there, f.here, protocolTCP, nil),
			ipPacket(f.there, f.here, 44, make([]byte, 8)),
		} {
			for size := range len(good) + 1 {
				w.send(good[:size])
			}
			for range 500 {
				bad := append([]byte(nil), good...)
				for range 1 + random.IntN(3) {
					bad[random.IntN(len(bad))] = byte(random.Uint32())
				}
				w.send(bad, bad)
			}
		}
		w.ping(f, 777, nil)
	}
	if _, err := stack.Device().Write([][]byte{{}, nil, make([]byte, 3)}, headroom); err != nil {
		t.Errorf("writing buffers without packets: %v", err)
	}
}

func testPing(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	w := newWire(t, stack)
	for _, f := range families {
		for seq := range 5 {
			w.send(echoPacket(f.there, f.here, uint16(seq), "are you there"))
			reply := w.want("echo reply", func(p parsed) bool {
				return (p.protocol == protocolICMP || p.protocol == protocolICMPv6) && p.from == f.here && p.to == f.there
			})
			if reply.payload[0] != 0 && reply.payload[0] != 129 {
				t.Errorf("ICMP type is %d", reply.payload[0])
			}
			if got := binary.BigEndian.Uint16(reply.payload[6:]); got != uint16(seq) || string(reply.payload[8:]) != "are you there" {
				t.Errorf("reply is %d, %q", got, reply.payload[8:])
			}
		}
	}
}

// testIsolation sends packets to what a peer must not reach: addresses of the
// host, of other peers and of nobody. None may be answered or passed on.
func testIsolation(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	hostPort := uint16(host.Addr().(*net.TCPAddr).Port)
	w := newWire(t, stack)
	for _, address := range []string{"[::]:80", "0.0.0.0:81"} {
		listener, err := stack.ListenTCP(netip.MustParseAddrPort(address))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
	}
	const seq = 4242
	escaped := func(p parsed) {
		t.Helper()
		for _, f := range families {
			if p.isEchoReply(f, seq) {
				return // to one of several pings, of which it was not the last
			}
		}
		t.Errorf("a packet left from %v to %v, protocol %d", p.from, p.to, p.protocol)
	}
	outsiders := map[bool][]string{
		true:  {"127.0.0.1", "127.1.2.3", "10.77.0.3", "10.77.0.255", "192.168.1.1", "8.8.8.8", "0.0.0.0", "169.254.169.254"},
		false: {"::1", "fd77::3", "2001:db8::1", "fe80::1", "::ffff:127.0.0.1", "::"},
	}
	for _, f := range families {
		for _, outsider := range outsiders[f.here.Is4()] {
			to := netip.MustParseAddr(outsider)
			for _, port := range []uint16{80, 81, 22, hostPort} {
				w.send(synPacket(f.there, to, port), udpPacket(f.there, to, port, "x"))
			}
			w.send(echoPacket(f.there, to, 1, "x"))
			// A peer that pretends to be us or the host.
			w.send(synPacket(f.here, f.here, 80))
			if to.IsLoopback() || to.IsUnspecified() {
				w.send(synPacket(to, f.here, 80), udpPacket(to, f.here, 9, "x"))
			}
		}
		w.ping(f, seq, escaped)
	}
	// Whatever was answered has left by now, or does so at once.
	for quiet := false; !quiet; {
		select {
		case packet := <-w.packets:
			escaped(parsePacket(packet))
		case <-time.After(100 * time.Millisecond):
			quiet = true
		}
	}
	host.(*net.TCPListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
	if conn, err := host.Accept(); err == nil {
		t.Error("a packet reached the host")
		conn.Close()
	}
}

// testMSS reads the MSS that SYNs advertise, before and after the MTU changes.
func testMSS(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: 1280, Addresses: hereAddresses})
	w := newWire(t, stack)
	listener, err := stack.ListenTCP(netip.MustParseAddrPort("[::]:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, size := range []int{1280, 1420, 1300} {
		setMTU(t, stack, size)
		for i, f := range families {
			want := size - 40
			if f.here.Is6() {
				want = size - 60
			}
			ctx, cancel := context.WithCancel(context.Background())
			dialed := make(chan error, 1)
			go func() {
				_, err := stack.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(f.there, uint16(size+i)))
				dialed <- err
			}()
			syn := w.want("SYN", func(p parsed) bool {
				return p.protocol == protocolTCP && p.payload[13]&(flagSYN|flagACK) == flagSYN &&
					binary.BigEndian.Uint16(p.payload[2:]) == uint16(size+i)
			})
			cancel()
			<-dialed
			if got := mssOf(syn.payload); got != want {
				t.Errorf("MTU %d, %s: SYN has MSS %d, want %d", size, f.name, got, want)
			}
			from := netip.MustParseAddr(map[bool]string{true: "10.77.0.50", false: "fd77::50"}[f.here.Is4()])
			w.send(synPacket(from, f.here, 80))
			synAck := w.want("SYN+ACK", func(p parsed) bool {
				return p.protocol == protocolTCP && p.to == from && p.payload[13]&(flagSYN|flagACK) == flagSYN|flagACK
			})
			if got := mssOf(synAck.payload); got != want {
				t.Errorf("MTU %d, %s: SYN+ACK has MSS %d, want %d", size, f.name, got, want)
			}
			// Take it back, so that the next SYN is a new connection.
			reset := make([]byte, 20)
			binary.BigEndian.PutUint16(reset[0:], 40000)
			binary.BigEndian.PutUint16(reset[2:], 80)
			binary.BigEndian.PutUint32(reset[4:], 2)
			reset[12], reset[13] = 5<<4, flagRST
			w.send(ipPacket(from, f.here, protocolTCP, reset))
		}
	}
}

// mssOf returns the MSS option of a TCP header, 0 if there is none.
func mssOf(tcp []byte) int {
	options := tcp[20 : int(tcp[12]>>4)*4]
	for len(options) > 1 && options[0] != 0 {
		switch {
		case options[0] == 1:
			options = options[1:]
		case options[0] == 2 && len(options) >= 4:
			return int(binary.BigEndian.Uint16(options[2:]))
		case options[1] < 2 || int(options[1]) > len(options):
			return 0
		default:
			options = options[options[1]:]
		}
	}
	return 0
}

// testUnreachable answers SYNs with the ICMP messages of a router behind the
// peer.
func testUnreachable(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	w := newWire(t, stack)
	unreachable := []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH}
	refused := []error{syscall.ECONNREFUSED}
	tests := []struct {
		name       string
		family     family
		kind, code byte
		want       []error
	}{
		{"IPv4 network", families[0], 3, 0, unreachable},
		{"IPv4 host", families[0], 3, 1, unreachable},
		{"IPv4 prohibited", families[0], 3, 13, unreachable},
		{"IPv4 port", families[0], 3, 3, refused},
		{"IPv6 no route", families[1], 1, 0, unreachable},
		{"IPv6 prohibited", families[1], 1, 1, append(unreachable, syscall.EACCES)},
		{"IPv6 address", families[1], 1, 3, unreachable},
		{"IPv6 port", families[1], 1, 4, refused},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			port := uint16(1000 + i)
			failed := make(chan error, 1)
			go func() {
				_, err := stack.DialTCP(within(t), netip.AddrPort{}, netip.AddrPortFrom(test.family.there, port))
				failed <- err
			}()
			syn := w.want("SYN", func(p parsed) bool {
				return p.protocol == protocolTCP && binary.BigEndian.Uint16(p.payload[2:]) == port
			})
			protocol := byte(protocolICMP)
			if test.family.here.Is6() {
				protocol = protocolICMPv6
			}
			message := append([]byte{test.kind, test.code, 0, 0, 0, 0, 0, 0}, ipPacket(syn.from, syn.to, syn.protocol, syn.payload)...)
			w.send(ipPacket(test.family.there, syn.from, protocol, message))
			wantError(t, "dialing", <-failed, test.want...)
		})
	}
}
