package stacktest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// peer is one end of a TCP connection to a stack, every segment of which the
// test makes. It has the whole of its window open at all times.
type peer struct {
	w        *wire
	from, to netip.AddrPort

	sent, acked uint32 // of its own
	edge        uint32 // the right end of the window, as far as it ever was
	window      uint32 // as the last segment says
	scale       uint8
	got         uint32 // of the stack
}

// connectPeer makes a connection to port 80 of a stack.
func connectPeer(w *wire, f family, listener netstack.TCPListener) (*peer, netstack.TCPConn) {
	w.t.Helper()
	p := &peer{w: w, from: netip.AddrPortFrom(f.there, 40000), to: netip.AddrPortFrom(f.here, 80), sent: 1}
	const mss, windowScale = 2, 3
	p.segment(flagSYN, []byte{mss, 4, 1300 >> 8, 1300 & 0xff, 1, windowScale, 3, 7}, nil)
	p.sent++
	answer := w.want("SYN+ACK", p.hears)
	p.got = binary.BigEndian.Uint32(answer.payload[4:]) + 1
	p.scale = scaleOf(w.t, answer.payload)
	p.window = uint32(binary.BigEndian.Uint16(answer.payload[14:])) // which is never scaled
	p.acked, p.edge = p.sent, p.sent+p.window
	p.segment(flagACK, nil, nil)
	accepted, err := listener.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	return p, accepted.(netstack.TCPConn)
}

// scaleOf is the window scale option of a TCP header, without which there is
// nothing to test.
func scaleOf(t *testing.T, tcp []byte) uint8 {
	t.Helper()
	options := tcp[20 : int(tcp[12]>>4)*4]
	for len(options) > 2 && options[0] != 0 {
		switch options[0] {
		case 1:
			options = options[1:]
		case 3:
			return options[2]
		default:
			options = options[options[1]:]
		}
	}
	t.Fatal("the stack does not scale its window")
	return 0
}

// hears says whether a packet is a segment of the connection.
func (p *peer) hears(packet parsed) bool {
	return packet.protocol == protocolTCP && packet.from == p.to.Addr() && packet.to == p.from.Addr() &&
		binary.BigEndian.Uint16(packet.payload[2:]) == p.from.Port()
}

// segment sends one, from where the connection is.
func (p *peer) segment(flags byte, options, payload []byte) {
	p.w.t.Helper()
	tcp := make([]byte, 20, 20+len(options)+len(payload))
	binary.BigEndian.PutUint16(tcp[0:], p.from.Port())
	binary.BigEndian.PutUint16(tcp[2:], p.to.Port())
	binary.BigEndian.PutUint32(tcp[4:], p.sent)
	binary.BigEndian.PutUint32(tcp[8:], p.got)
	tcp[12], tcp[13] = byte(20+len(options))/4<<4, flags
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	p.w.send(ipPacket(p.from.Addr(), p.to.Addr(), protocolTCP, append(append(tcp, options...), payload...)))
}

// write sends data, which the window must have room for.
func (p *peer) write(data []byte) {
	p.w.t.Helper()
	p.segment(flagACK, nil, data)
	p.sent += uint32(len(data))
}

// next takes the next segment of the stack, and returns its payload if that is
// what follows.
func (p *peer) next(what string) []byte {
	p.w.t.Helper()
	tcp := p.w.want(what, p.hears).payload
	p.acked = binary.BigEndian.Uint32(tcp[8:])
	p.window = uint32(binary.BigEndian.Uint16(tcp[14:])) << p.scale
	if edge := p.acked + p.window; int32(edge-p.edge) > 0 {
		p.edge = edge
	}
	payload := tcp[int(tcp[12]>>4)*4:]
	if binary.BigEndian.Uint32(tcp[4:]) != p.got {
		return nil
	}
	p.got += uint32(len(payload))
	return payload
}

// ClosedWindow fills the window of a connection that nobody reads, to the last
// byte that it was ever open for. What the connection writes must go on reaching
// the peer, and the peer's acknowledgements the connection: who reads only after
// writing would wait for ever otherwise.
//
// It is no part of Run. Linux goes back behind what it has advertised as well,
// when its memory is full of small packets, and a peer that is Linux acknowledges
// from before that (tcp_acceptable_seq in net/ipv4/tcp_output.c).
func ClosedWindow(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	w := newWire(t, stack)
	listener, err := stack.ListenTCP(netip.MustParseAddrPort("[::]:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, f := range families {
		p, conn := connectPeer(w, f, listener)
		defer conn.Close()

		// In small pieces at the end, after each of which the stack says anew
		// what is left, which it can only in units of its window's scale.
		const piece, small = 1000, 100
		data := bytes.Repeat([]byte("in"), piece/2)
		first := p.sent
		for p.window > 0 || p.edge != p.sent {
			if room := p.edge - p.sent; room > 0 && (p.acked == p.sent || p.window == 0) {
				size := uint32(piece)
				if room < 3*piece {
					size = min(room, small)
				}
				p.write(data[:size])
			}
			p.next("acknowledgement")
		}

		const total = 100 << 10
		want := bytes.Repeat([]byte("out"), total/3)
		wrote := make(chan error, 1)
		go func() {
			_, err := conn.Write(want)
			wrote <- err
		}()
		var got []byte
		for end := time.Now().Add(patience); len(got) < len(want); {
			if time.Now().After(end) {
				t.Fatalf("%s: %d of %d bytes have come, and the same ones again and again", f.name, len(got), len(want))
			}
			if payload := p.next("data"); len(payload) > 0 {
				got = append(got, payload...)
				p.segment(flagACK, nil, nil)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: what was written has come otherwise", f.name)
		}
		if err := <-wrote; err != nil {
			t.Errorf("%s: writing: %v", f.name, err)
		}

		// All that was acknowledged is there, and makes room again.
		conn.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.CopyN(io.Discard, conn, int64(p.acked-first)); err != nil {
			t.Errorf("%s: reading: %d of %d bytes, %v", f.name, n, p.acked-first, err)
		}
		for p.window == 0 {
			p.next("window")
		}
	}
}
