package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
)

// overhead is what WireGuard adds to an inner packet (whitepaper, section
// 5.4.6).
const overhead = 32

// line is a UDP forwarder between one home and its relay that loses datagrams
// above a size, silently, as a path with a small MTU does whose routers send
// no ICMP.
type line struct {
	// up and down are the sizes of the largest inner packets that pass from
	// home to the relay and back.
	up, down atomic.Int64

	// lost counts the datagrams that were too large.
	lost atomic.Int64

	// largest is the size of the largest datagram that came, as inner packet.
	largest atomic.Int64

	// address is where home calls the relay.
	address netip.AddrPort

	near  *net.UDPConn
	far   atomic.Pointer[net.UDPConn]
	home  atomic.Pointer[netip.AddrPort]
	relay netip.AddrPort
	done  sync.WaitGroup
}

// newLine makes a line to a relay's port that carries inner packets of up to
// size bytes both ways.
func newLine(t *testing.T, relayPort uint16, size int) *line {
	t.Helper()
	l := &line{near: openLoopback(t), relay: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), relayPort)}
	l.address = l.near.LocalAddr().(*net.UDPAddr).AddrPort()
	l.carry(size)
	l.done.Go(func() {
		l.forward(l.near, &l.up, func(datagram []byte, sender netip.AddrPort) {
			l.home.Store(&sender)
			l.far.Load().WriteToUDPAddrPort(datagram, l.relay)
		})
	})
	l.move(t, size)
	t.Cleanup(func() {
		l.near.Close()
		l.far.Load().Close()
		l.done.Wait()
	})
	return l
}

func openLoopback(t testing.TB) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// forward hands on what comes from a socket and is not too large, until the
// socket is closed.
func (l *line) forward(from *net.UDPConn, limit *atomic.Int64, to func(datagram []byte, sender netip.AddrPort)) {
	buf := make([]byte, 1<<16)
	for {
		n, sender, err := from.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		size := int64(n - overhead)
		for largest := l.largest.Load(); size > largest && !l.largest.CompareAndSwap(largest, size); {
			largest = l.largest.Load()
		}
		switch {
		case size > limit.Load():
			l.lost.Add(1)
		case err == nil:
			to(buf[:n], sender)
		}
	}
}

// move makes home speak to the relay from another port, as a new line does,
// over a path of another size.
func (l *line) move(t *testing.T, size int) {
	t.Helper()
	l.carry(size)
	far := openLoopback(t)
	if former := l.far.Swap(far); former != nil {
		former.Close()
	}
	l.done.Go(func() {
		l.forward(far, &l.down, func(datagram []byte, _ netip.AddrPort) {
			if home := l.home.Load(); home != nil {
				l.near.WriteToUDPAddrPort(datagram, *home)
			}
		})
	})
}

// carry makes the line carry inner packets of up to size bytes both ways.
func (l *line) carry(size int) {
	l.up.Store(int64(size))
	l.down.Store(int64(size))
}
