package stacktest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

func testBadConfig(t *testing.T, newStack New) {
	for _, config := range []Config{
		{Name: "a", MTU: 0},
		{Name: "a", MTU: netstack.MinMTU - 1},
		{Name: "a", MTU: 1 << 20},
		{Name: "a", MTU: mtu, Addresses: prefixes("::1/128")},
		{Name: "a", MTU: mtu, Addresses: []netip.Prefix{{}}},
	} {
		if stack, err := newStack(config); err == nil {
			t.Errorf("%+v was taken", config)
			stack.Close()
		}
	}
}

// testBadArguments gives addresses to every method that no socket can have.
func testBadArguments(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	newWire(t, stack)
	remotes := []string{
		"0.0.0.0:80", "[::]:80", "127.0.0.1:80", "[::1]:80", "224.0.0.1:80", "[ff02::1]:80", "10.77.0.2:0",
		"[::ffff:127.0.0.1]:80", "[fe80::1%lo]:80",
	}
	for _, remote := range append([]netip.AddrPort{{}}, addrPorts(remotes...)...) {
		if conn, err := stack.DialTCP(within(t), netip.AddrPort{}, remote); err == nil {
			t.Errorf("TCP reached %v", remote)
			conn.Close()
		}
		if conn, err := stack.DialUDP(within(t), netip.AddrPort{}, remote); err == nil {
			t.Errorf("UDP reached %v", remote)
			conn.Close()
		}
	}
	for _, local := range addrPorts("127.0.0.1:0", "[fd77::1]:0", "224.0.0.1:9") {
		if conn, err := stack.DialTCP(within(t), local, netip.MustParseAddrPort("10.77.0.2:80")); err == nil {
			t.Errorf("TCP left from %v", local)
			conn.Close()
		}
	}
	for _, local := range addrPorts("10.1.1.1:80", "127.0.0.1:80", "[fd99::1]:80") {
		_, err := stack.ListenTCP(local)
		wantError(t, "listening on "+local.String(), err, syscall.EADDRNOTAVAIL)
		_, err = stack.ListenUDP(local)
		wantError(t, "listening on "+local.String(), err, syscall.EADDRNOTAVAIL)
	}
}

func addrPorts(all ...string) []netip.AddrPort {
	var parsed []netip.AddrPort
	for _, s := range all {
		parsed = append(parsed, netip.MustParseAddrPort(s))
	}
	return parsed
}

func testNoAddress(t *testing.T, newStack New) {
	only4 := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses[:1]})
	_, err := only4.DialTCP(within(t), netip.AddrPort{}, netip.MustParseAddrPort("[fd77::2]:80"))
	wantError(t, "dialing IPv6", err, netstack.ErrNoAddress)
	_, err = only4.DialUDP(within(t), netip.AddrPort{}, netip.MustParseAddrPort("[fd77::2]:80"))
	wantError(t, "dialing IPv6", err, netstack.ErrNoAddress)
	_, err = only4.ListenTCP(netip.MustParseAddrPort("[fd77::1]:80"))
	wantError(t, "listening on IPv6", err, netstack.ErrNoAddress, syscall.EADDRNOTAVAIL)
	if err := only4.SetAddresses(nil); err != nil {
		t.Fatal(err)
	}
	_, err = only4.DialTCP(within(t), netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.2:80"))
	wantError(t, "dialing IPv4", err, netstack.ErrNoAddress)
}

func testDevice(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "wg7", MTU: 1400, Addresses: hereAddresses})
	device := stack.Device()
	if device != stack.Device() {
		t.Error("the device differs from call to call")
	}
	if name, err := device.Name(); err != nil || name != "wg7" {
		t.Errorf("name is %q, %v", name, err)
	}
	if got, err := device.MTU(); err != nil || got != 1400 {
		t.Errorf("MTU is %d, %v", got, err)
	}
	if device.BatchSize() < 1 {
		t.Errorf("batch size is %d", device.BatchSize())
	}
	select {
	case event := <-device.Events():
		t.Errorf("event %v came by itself: its owner brings the tunnel up", event)
	default:
	}
	setMTU(t, stack, 1300)
	select {
	case event := <-device.Events():
		if event != tun.EventMTUUpdate {
			t.Errorf("event is %v", event)
		}
	case <-time.After(patience):
		t.Error("no event told of the MTU")
	}
	// Nobody reads events here, and that must not matter.
	for i := range 100 {
		setMTU(t, stack, 1280+i)
	}
	if kind := stack.Kind(); kind != "gvisor" && kind != "kernel" {
		t.Errorf("kind is %q", kind)
	}
}

// testClose closes a stack with everything open.
func testClose(t *testing.T, newStack New) { closeWith(t, newStack, netstack.Stack.Close) }

func testCloseByDevice(t *testing.T, newStack New) {
	closeWith(t, newStack, func(stack netstack.Stack) error { return stack.Device().Close() })
}

func closeWith(t *testing.T, newStack New, closeStack func(netstack.Stack) error) {
	p := &pair{
		here:  newStackFor(t, newStack, Config{Name: "here", MTU: mtu, Addresses: hereAddresses}),
		there: newStackFor(t, newStack, Config{Name: "there", MTU: mtu, Addresses: thereAddresses}),
		limit: newSizeLimit(mtu),
	}
	joinInMemory(t, p)
	f := families[0]
	listener := listen(t, p, f)
	dialed, accepted := connect(t, p, listener)
	server := listenUDP(t, p, f)
	failed := make(chan error, 3)
	go func() {
		_, err := listener.Accept()
		failed <- err
	}()
	go func() {
		_, err := accepted.Read(make([]byte, 1))
		failed <- err
	}()
	go func() {
		_, _, err := server.ReadFrom(make([]byte, 1))
		failed <- err
	}()
	if err := closeStack(p.there); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := <-failed; err == nil || isTimeout(err) {
			t.Errorf("a waiter ended with %v", err)
		}
	}
	// The peer is told.
	_, err := dialed.Read(make([]byte, 1))
	wantError(t, "reading at the peer", err, syscall.ECONNRESET)

	for range 2 {
		if err := closeStack(p.there); err != nil {
			t.Errorf("closing again: %v", err)
		}
	}
	if _, err := p.there.DialTCP(within(t), netip.AddrPort{}, netip.AddrPortFrom(f.here, 1)); err == nil {
		t.Error("a closed stack dials")
	}
	if _, err := p.there.DialUDP(within(t), netip.AddrPort{}, netip.AddrPortFrom(f.here, 1)); err == nil {
		t.Error("a closed stack dials UDP")
	}
	if _, err := p.there.ListenTCP(netip.AddrPortFrom(f.there, 1)); err == nil {
		t.Error("a closed stack listens")
	}
	if _, err := p.there.ListenUDP(netip.AddrPortFrom(f.there, 1)); err == nil {
		t.Error("a closed stack listens for datagrams")
	}
	p.there.SetMTU(1300)
	p.there.SetAddresses(thereAddresses)
	accepted.Close()
	listener.Close()
	device := p.there.Device()
	if _, err := device.Read([][]byte{make([]byte, 2000)}, make([]int, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("reading a closed device: %v", err)
	}
	if _, err := device.Write([][]byte{echoPacket(f.here, f.there, 1, "x")}, 0); err == nil {
		t.Error("writing a closed device works")
	}
	for range device.Events() {
	}
}

// fill sends datagrams to nowhere until the outgoing queue of a device that
// nobody reads must be full, whatever the stack then does with a sender.
func fill(t *testing.T, stack netstack.Stack) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 8 {
		conn, err := stack.DialUDP(within(t), netip.AddrPort{}, netip.AddrPortFrom(nobody, 9))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			payload := make([]byte, 1000)
			for range 10000 {
				if _, err := conn.Write(payload); err != nil || ctx.Err() != nil {
					return
				}
			}
		})
		context.AfterFunc(ctx, func() { conn.Close() })
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// soon is how long what must not wait for a reader may take. A stack may hold
// a sender for a moment.
const soon = 5 * time.Second

func testCloseUnread(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	stop := fill(t, stack)
	defer stop()
	start := time.Now()
	if err := stack.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > soon {
		t.Errorf("took %v", took)
	}
}

func testDialUnread(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	stop := fill(t, stack)
	defer stop()
	start := time.Now()
	for range 10 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		_, err := stack.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(nobody, 9))
		cancel()
		wantError(t, "dialing", err, context.DeadlineExceeded)
	}
	if took := time.Since(start); took > soon {
		t.Errorf("took %v", took)
	}
}

// testCloseUnderLoad closes both stacks while connections come, go and send.
func testCloseUnderLoad(t *testing.T, newStack New) {
	for range 5 {
		p := &pair{
			here:  newStackFor(t, newStack, Config{Name: "here", MTU: mtu, Addresses: hereAddresses}),
			there: newStackFor(t, newStack, Config{Name: "there", MTU: mtu, Addresses: thereAddresses}),
			limit: newSizeLimit(mtu),
		}
		joinInMemory(t, p)
		listener := listen(t, p, families[0])
		listener.SetDeadline(time.Time{})
		var wg sync.WaitGroup
		busy := make(chan struct{}, 1000)
		wg.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer conn.Close()
					n, _ := io.CopyN(io.Discard, conn, 100<<10)
					if n > 0 {
						select {
						case busy <- struct{}{}:
						default:
						}
					}
				})
			}
		})
		for range 20 {
			wg.Go(func() {
				for {
					conn, err := p.here.DialTCP(within(t), netip.AddrPort{}, addrPort(listener.Addr()))
					if err != nil {
						return
					}
					for chunk := make([]byte, 64<<10); err == nil; {
						_, err = conn.Write(chunk)
					}
					conn.Close()
				}
			})
		}
		for range 20 {
			<-busy
		}
		var closing sync.WaitGroup
		for _, stack := range []netstack.Stack{p.here, p.there} {
			closing.Go(func() { stack.Close() })
			closing.Go(func() { stack.Device().Close() })
		}
		closing.Wait()
		wg.Wait()
	}
}

// testWriteDoesNotWait floods the device with what is answered at once, while
// nobody reads the answers.
func testWriteDoesNotWait(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	listener, err := stack.ListenTCP(netip.MustParseAddrPort("[::]:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	stop := fill(t, stack)
	defer stop()
	for _, f := range families {
		slow := time.Duration(0)
		for i := range 3000 {
			packets := [][]byte{
				echoPacket(f.there, f.here, uint16(i), "0123456789"),
				synPacket(f.there, f.here, 81),
				synPacket(f.there, f.here, 80),
				udpPacket(f.there, f.here, 9, "x"),
			}
			start := time.Now()
			if _, err := stack.Device().Write(packets, 0); err != nil {
				t.Fatal(err)
			}
			slow = max(slow, time.Since(start))
		}
		if slow > soon {
			t.Errorf("a write of four packets took %v", slow)
		}
	}
}

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
	escaped := func(p parsed) {
		t.Helper()
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
		w.ping(f, 4242, escaped)
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
