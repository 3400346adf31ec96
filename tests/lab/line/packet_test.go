package line

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// packet4 is an IPv4 packet from 10.0.0.1 to 10.0.0.2 with count bytes inside.
func packet4(count int, df bool) []byte {
	p := make([]byte, ipv4Header+count)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[4:], 77)
	if df {
		p[6] = 0x40
	}
	copy(p[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(p[10:], checksum(0, p[:ipv4Header]))
	for i := range count {
		p[ipv4Header+i] = byte(i)
	}
	return p
}

func packet6(count int) []byte {
	p := make([]byte, ipv6Header+count)
	p[0], p[6], p[7] = 0x60, 17, 64
	binary.BigEndian.PutUint16(p[4:], uint16(count))
	p[8], p[23] = 0xfd, 1
	p[24], p[39] = 0xfd, 2
	return p
}

func TestTooBig4(t *testing.T) {
	packet := packet4(1480, true)
	out := tooBig(packet, 1400)
	header, err := ipv4.ParseHeader(out)
	if err != nil || checksum(0, out[:ipv4Header]) != 0 || header.TotalLen != len(out) || len(out) > 576 {
		t.Fatalf("%v, %v", header, err)
	}
	if header.Src.String() != "10.0.0.2" || header.Dst.String() != "10.0.0.1" {
		t.Errorf("%s to %s", header.Src, header.Dst)
	}
	message, err := icmp.ParseMessage(1, out[ipv4Header:])
	if err != nil || message.Type != ipv4.ICMPTypeDestinationUnreachable || message.Code != 4 || checksum(0, out[ipv4Header:]) != 0 {
		t.Fatalf("%+v, %v", message, err)
	}
	if mtu := binary.BigEndian.Uint16(out[ipv4Header+6:]); mtu != 1400 {
		t.Errorf("MTU %d", mtu)
	}
	if !bytes.HasPrefix(packet, out[ipv4Header+8:]) {
		t.Error("it quotes another packet")
	}
}

func TestTooBig6(t *testing.T) {
	packet := packet6(1460)
	out := tooBig(packet, 1300)
	header, err := ipv6.ParseHeader(out)
	if err != nil || header.PayloadLen != len(out)-ipv6Header || len(out) > 1280 || header.Src.String() != "fd00::2" {
		t.Fatalf("%v, %v", header, err)
	}
	pseudo := icmp.IPv6PseudoHeader(header.Src, header.Dst)
	message, err := icmp.ParseMessage(58, out[ipv6Header:])
	if err != nil || message.Type != ipv6.ICMPTypePacketTooBig {
		t.Fatalf("%+v, %v", message, err)
	}
	if message.Body.(*icmp.PacketTooBig).MTU != 1300 {
		t.Errorf("%+v", message.Body)
	}
	// The reference fills in the checksum itself.
	want, err := message.Marshal(pseudo)
	if err != nil || !bytes.Equal(want, out[ipv6Header:]) {
		t.Errorf("differs from the reference (%v)", err)
	}
}

func TestFragment(t *testing.T) {
	packet := packet4(3000, false)
	if !mayFragment(packet) || mayFragment(packet4(10, true)) || mayFragment(packet6(10)) {
		t.Error("mayFragment is wrong")
	}
	whole := make([]byte, 3000)
	filled := 0
	fragments := fragment(packet, 1400)
	for n, f := range fragments {
		header, err := ipv4.ParseHeader(f)
		if err != nil || len(f) > 1400 || checksum(0, f[:ipv4Header]) != 0 || header.ID != 77 {
			t.Fatalf("fragment %d: %v, %v", n, header, err)
		}
		if more := header.Flags&ipv4.MoreFragments != 0; more != (n < len(fragments)-1) {
			t.Errorf("fragment %d: more fragments %v", n, more)
		}
		filled += copy(whole[header.FragOff*8:], f[ipv4Header:])
	}
	if filled != 3000 || !bytes.Equal(whole, packet[ipv4Header:]) {
		t.Errorf("%d bytes in %d fragments", filled, len(fragments))
	}

	// A fragment that has to be cut again keeps its place.
	again := fragment(fragments[0], 700)
	header, err := ipv4.ParseHeader(again[1])
	if err != nil || header.FragOff*8 != 680 || header.Flags&ipv4.MoreFragments == 0 {
		t.Errorf("%v, %v", header, err)
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(packet4(100, true), 60)
	f.Add(packet4(100, false), 60)
	f.Add(packet6(100), 60)
	f.Fuzz(func(t *testing.T, packet []byte, mtu int) {
		if mtu < 0 || mtu > 65535 {
			return
		}
		tooBig(packet, mtu)
		if mayFragment(packet) {
			fragment(packet, mtu)
		}
	})
}
