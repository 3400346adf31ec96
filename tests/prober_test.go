package tests

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// prober sends TCP's first packet to whatever address it likes, straight into
// an interface without link layer, as somebody does who has the far end of a
// tunnel, and sees what comes back.
type prober struct {
	t      *testing.T
	socket int
	link   unix.SockaddrLinklayer
	port   uint16 // which it knocks from, and sees answers to
}

const (
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// newProber uses an interface of a namespace.
func newProber(t *testing.T, namespace *testnet.Namespace, name string) *prober {
	t.Helper()
	p := &prober{t: t, port: 40_000}
	err := namespace.Do(func() error {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		p.link = unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}
		if p.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(p.socket) })
		unix.SetsockoptInt(p.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
		patience := unix.NsecToTimeval(int64(200 * time.Millisecond))
		if err := unix.SetsockoptTimeval(p.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
			return err
		}
		return unix.Bind(p.socket, &p.link)
	})
	if err != nil {
		t.Fatalf("probing by %s in %s: %v", name, namespace.Name, err)
	}
	return p
}

// knock sends a SYN.
func (p *prober) knock(from netip.Addr, to netip.AddrPort) {
	p.t.Helper()
	var tcp [20]byte
	binary.BigEndian.PutUint16(tcp[0:], p.port)
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], 1)
	tcp[12], tcp[13] = 5<<4, tcpSYN
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	source, target := from.AsSlice(), to.Addr().AsSlice()
	pseudo := slices.Concat(source, target, []byte{0, unix.IPPROTO_TCP, 0, byte(len(tcp))}, tcp[:])
	binary.BigEndian.PutUint16(tcp[16:], checksum(pseudo))

	link := p.link
	var ip []byte
	if to.Addr().Is4() {
		link.Protocol = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
		ip = []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0}
		ip = slices.Concat(ip, source, target)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	} else {
		link.Protocol = unix.ETH_P_IPV6<<8&0xff00 | unix.ETH_P_IPV6>>8
		ip = slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(tcp)), unix.IPPROTO_TCP, 64}, source, target)
	}
	for {
		err := unix.Sendto(p.socket, append(ip, tcp[:]...), 0, &link)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.ENOBUFS) {
			p.t.Fatalf("probing %s: %v", to, err)
		}
	}
}

// checksum is the internet's (RFC 1071).
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(data[i]) << 8
		if i+1 < len(data) {
			sum += uint32(data[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// answer waits for the next TCP packet that answers a knock, for a fifth of a
// second.
func (p *prober) answer() (from netip.AddrPort, flags byte, ok bool) {
	buffer := make([]byte, 2048)
	for {
		n, link, err := unix.Recvfrom(p.socket, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return from, 0, false
		}
		// Its own packets come by as well.
		if l, ok := link.(*unix.SockaddrLinklayer); !ok || l.Pkttype == unix.PACKET_OUTGOING || n < 40 {
			continue
		}
		packet := buffer[:n]
		var source netip.Addr
		switch {
		case packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_TCP:
			source, packet = netip.AddrFrom4([4]byte(packet[12:16])), packet[4*int(packet[0]&15):]
		case packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_TCP && n >= 60:
			source, packet = netip.AddrFrom16([16]byte(packet[8:24])), packet[40:]
		default:
			continue
		}
		if len(packet) >= 20 && binary.BigEndian.Uint16(packet[2:]) == p.port {
			return netip.AddrPortFrom(source, binary.BigEndian.Uint16(packet)), packet[13], true
		}
	}
}

// scan knocks at the first 10,000 ports of an address, with HOMEWARD_LAB=1 at all
// of them, and returns those that are open. Each must answer, with SYN and ACK or
// with RST.
func (p *prober) scan(from, to netip.Addr) (open []int) {
	p.t.Helper()
	const batch = 256
	last := 10_000
	if os.Getenv("HOMEWARD_LAB") != "" {
		last = 65535
	}
	ports := make(map[uint16]bool, last) // those that have not answered
	for port := 1; port <= last; port++ {
		ports[uint16(port)] = true
	}
	for silent := 0; len(ports) > 0; {
		var knocked []uint16
		for port := range ports {
			if knocked = append(knocked, port); len(knocked) == batch {
				break
			}
		}
		for _, port := range knocked {
			p.knock(from, netip.AddrPortFrom(to, port))
		}
		answered := 0
		for answered < len(knocked) {
			who, flags, ok := p.answer()
			if !ok {
				break
			}
			if who.Addr() != to || !ports[who.Port()] {
				continue
			}
			delete(ports, who.Port())
			answered++
			if flags&tcpRST == 0 {
				open = append(open, int(who.Port()))
			}
		}
		if answered > 0 {
			silent = 0
		} else if silent++; silent == 25 {
			p.t.Fatalf("%d ports of %s do not answer", len(ports), to)
		}
	}
	slices.Sort(open)
	return open
}

// onlyAnswers knocks at doors that must not answer, and then at one that does,
// which proves that the others could have.
func (p *prober) onlyAnswers(from netip.Addr, control netip.AddrPort, doors ...string) {
	p.t.Helper()
	// What still comes in answer to former knocks does not count.
	p.port++
	for _, door := range doors {
		to := netip.MustParseAddrPort(door)
		source := from
		if to.Addr().Is6() {
			source = netip.MustParseAddr("fd77::1")
		}
		p.knock(source, to)
	}
	for range 25 {
		p.knock(from, control)
		for {
			who, flags, ok := p.answer()
			if !ok {
				break
			}
			if who != control {
				p.t.Errorf("%s answers through the tunnel (flags %#x)", who, flags)
			} else if flags&(tcpSYN|tcpACK|tcpRST) == tcpSYN|tcpACK {
				return
			}
		}
	}
	p.t.Fatalf("%s does not answer either", control)
}
