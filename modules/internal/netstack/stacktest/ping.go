package stacktest

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// pingSizes are sizes of echo requests that fit both families.
var pingSizes = []int{56, 57, 576, netstack.MinMTU, netstack.MinMTU + 1, 1399, netstack.MaxPing}

// testPingPeer pings the other stack, many times at once, with MTUs below the
// requests' size at either end.
func testPingPeer(t *testing.T, p *pair, f family) {
	for _, mtus := range [][2]int{{mtu, mtu}, {netstack.MinMTU, mtu}, {mtu, netstack.MinMTU}, {netstack.MinMTU, netstack.MinMTU}} {
		setMTU(t, p.here, mtus[0])
		setMTU(t, p.there, mtus[1])
		ctx := within(t)
		var pings sync.WaitGroup
		for _, size := range slices.Concat(pingSizes, pingSizes) {
			pings.Go(func() {
				if err := p.here.Ping(ctx, f.there, size); err != nil {
					t.Errorf("MTUs %v: ping of %d bytes: %v", mtus, size, err)
				}
			})
		}
		pings.Wait()
	}

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	wantError(t, "pinging nobody", p.here.Ping(ctx, f.nobody, 1000), context.DeadlineExceeded)
}

// isEchoRequest says whether the packet is an echo request to f.there.
func (p parsed) isEchoRequest(f family) bool {
	request, protocol := byte(8), byte(protocolICMP)
	if f.here.Is6() {
		request, protocol = 128, protocolICMPv6
	}
	return p.from == f.here && p.to == f.there && p.protocol == protocol && len(p.payload) >= 8 && p.payload[0] == request
}

// size is the packet's, if its IP header is the least one.
func (p parsed) size() int {
	if p.from.Is4() {
		return 20 + len(p.payload)
	}
	return 40 + len(p.payload)
}

// answer makes the echo reply to an echo request.
func (p parsed) answer() []byte {
	payload := slices.Clone(p.payload)
	payload[0] = 0
	if p.protocol == protocolICMPv6 {
		payload[0] = 129
	}
	payload[2], payload[3] = 0, 0
	return ipPacket(p.to, p.from, p.protocol, payload)
}

// testPingPackets looks at the requests: each is one packet of the size asked
// for whatever the MTU is, its checksum is right, and only its own answer is
// taken.
func testPingPackets(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: netstack.MinMTU, Addresses: hereAddresses})
	w := newWire(t, stack)
	for _, f := range families {
		sizes := append(slices.Clone(pingSizes), 2000)
		if err := stack.SetMTU(netstack.MinMTU); err != nil {
			t.Fatal(err)
		}
		for _, size := range sizes {
			if size > netstack.MaxPing {
				if err := stack.SetMTU(size); err != nil {
					t.Fatal(err)
				}
			}
			answered := make(chan error, 1)
			go func() { answered <- stack.Ping(within(t), f.there, size) }()
			request := w.want("echo request", func(p parsed) bool { return p.isEchoRequest(f) })
			if got := request.size(); got != size {
				t.Errorf("%s: the request has %d bytes, want %d", f.name, got, size)
			}
			carried := binary.BigEndian.Uint16(request.payload[2:])
			again := slices.Clone(request.payload)
			again[2], again[3] = 0, 0
			remade := parsePacket(ipPacket(request.from, request.to, request.protocol, again))
			if want := binary.BigEndian.Uint16(remade.payload[2:]); carried != want {
				t.Errorf("%s: the request of %d bytes has checksum %04x, want %04x", f.name, size, carried, want)
			}

			// Answers to other requests: of another end, with other bytes, cut.
			stray := request
			stray.payload = slices.Clone(request.payload)
			binary.BigEndian.PutUint16(stray.payload[4:], ^binary.BigEndian.Uint16(request.payload[4:]))
			late := request
			late.payload = slices.Clone(request.payload)
			late.payload[8] ^= 1
			cut := request
			cut.payload = request.payload[:len(request.payload)-1]
			w.send(stray.answer(), late.answer(), cut.answer())
			w.ping(f, 7, nil)
			select {
			case err := <-answered:
				t.Fatalf("%s: somebody else's answer was taken: %v", f.name, err)
			default:
			}
			w.send(request.answer())
			if err := <-answered; err != nil {
				t.Errorf("%s, %d bytes: %v", f.name, size, err)
			}
		}
	}
}

// testPingEnd ends pings that nobody answers.
func testPingEnd(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	w := newWire(t, stack)
	for _, f := range families {
		begin := func(ctx context.Context) <-chan error {
			ended := make(chan error, 1)
			go func() { ended <- stack.Ping(ctx, f.there, 1000) }()
			return ended
		}
		isRequest := func(p parsed) bool { return p.isEchoRequest(f) }

		ctx, cancel := context.WithCancel(context.Background())
		ended := begin(ctx)
		w.want("echo request", isRequest)
		cancel()
		wantError(t, "cancelled", <-ended, context.Canceled)
		wantError(t, "cancelled before", stack.Ping(ctx, f.there, 1000), context.Canceled)

		ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
		wantError(t, "not answered", <-begin(ctx), context.DeadlineExceeded)
		cancel()
	}
	ended := make(chan error, 1)
	go func() { ended <- stack.Ping(within(t), families[0].there, 1000) }()
	w.want("echo request", func(p parsed) bool { return p.isEchoRequest(families[0]) })
	stack.Close()
	wantError(t, "closed", <-ended, net.ErrClosed)
	wantError(t, "closed before", stack.Ping(within(t), families[0].there, 1000), net.ErrClosed)
}

func testPingArguments(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: netstack.MinMTU, Addresses: hereAddresses[:1]})
	newWire(t, stack)
	for _, size := range []int{-1, 0, 27, netstack.MaxPing + 1, 1 << 17} {
		wantError(t, "a bad size", stack.Ping(within(t), families[0].there, size), syscall.EMSGSIZE)
	}
	wantError(t, "no address of the family", stack.Ping(within(t), families[1].there, 1000), netstack.ErrNoAddress)
	for _, bad := range []netip.Addr{
		{}, families[0].here, netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.1"),
		netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("fe80::1%lo"),
	} {
		if err := stack.Ping(within(t), bad, 1000); err == nil {
			t.Errorf("%v was pinged", bad)
		}
	}
}
