package stacktest

import (
	"context"
	"crypto/sha256"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// testLiveAddresses changes addresses under open connections and listeners.
func testLiveAddresses(t *testing.T, p *pair, f family) {
	everywhere, err := p.there.ListenTCP(netip.AddrPortFrom(f.unspecified, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer everywhere.Close()
	everywhere.SetDeadline(time.Now().Add(patience))
	kept := listen(t, p, f)
	dialed, accepted := connect(t, p, kept)

	fresh := netip.MustParseAddr("10.78.0.2")
	if f.there.Is6() {
		fresh = netip.MustParseAddr("fd78::2")
	}
	if _, err := p.there.ListenTCP(netip.AddrPortFrom(fresh, 80)); err == nil {
		t.Error("listening on an address that is not there works")
	} else {
		wantError(t, "listening on an address that is not there", err, syscall.EADDRNOTAVAIL)
	}

	added := append(prefixes(netip.PrefixFrom(fresh, 24).String()), thereAddresses...)
	if err := p.there.SetAddresses(added); err != nil {
		t.Fatal(err)
	}
	exchange(t, dialed, accepted)
	// The old listener has the new address.
	toFresh, err := p.here.DialTCP(within(t), netip.AddrPort{}, netip.AddrPortFrom(fresh, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer toFresh.Close()
	fromFresh, err := everywhere.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer fromFresh.Close()
	exchange(t, toFresh, fromFresh)
	exchangeOver(t, p, kept)

	// A source is chosen by prefix.
	reverse, err := p.here.ListenTCP(netip.AddrPortFrom(f.here, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer reverse.Close()
	back, err := p.there.DialTCP(within(t), netip.AddrPort{}, addrPort(reverse.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if got := addrPort(back.LocalAddr()).Addr(); got != f.there {
		t.Errorf("source is %v, want %v, whose prefix has the destination", got, f.there)
	}

	if err := p.there.SetAddresses(thereAddresses); err != nil {
		t.Fatal(err)
	}
	exchange(t, dialed, accepted)
	exchangeOver(t, p, kept)
	if _, err := p.there.ListenTCP(netip.AddrPortFrom(fresh, 80)); err == nil {
		t.Error("listening on an address that has gone works")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if conn, err := p.here.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(fresh, 8080)); err == nil {
		t.Error("an address that has gone still accepts")
		conn.Close()
	}
	for _, bad := range [][]netip.Prefix{
		prefixes("0.0.0.0/0"), prefixes("127.0.0.1/8"), prefixes("224.0.0.1/32"),
		prefixes("10.0.0.1/24", "10.0.0.1/16"), {netip.Prefix{}},
	} {
		if err := p.there.SetAddresses(bad); err == nil {
			t.Errorf("%v were taken", bad)
		}
	}
	exchange(t, dialed, accepted)
}

// testLiveMTU makes the MTU smaller and larger while a connection is busy.
func testLiveMTU(t *testing.T, p *pair) {
	for _, f := range families {
		listener := listen(t, p, f)
		dialed, accepted := connect(t, p, listener)
		const smaller = 1280
		var wg sync.WaitGroup
		var sent, received []byte
		var sendErr, receiveErr error
		reached := make(chan struct{})
		writer := &countingConn{TCPConn: dialed}
		var before atomic.Int64 // what was written before the MTU was smaller
		wg.Go(func() { sent, sendErr = stream(writer, 3, 16<<20) })
		wg.Go(func() {
			hash := sha256.New()
			read, err := io.CopyN(hash, accepted, 4<<20)
			close(reached)
			for err == nil {
				var n int64
				n, err = io.CopyN(hash, accepted, 64<<10)
				read += n
				// What was queued before may still be larger. A connection's packets
				// stay in order, so all of that came before this.
				if written := before.Load(); written > 0 && read > written {
					p.limit.set(smaller)
				}
			}
			if err != io.EOF {
				receiveErr = err
			}
			received = hash.Sum(nil)
		})
		<-reached
		setMTU(t, p.here, smaller)
		setMTU(t, p.there, smaller)
		before.Store(writer.bytes.Load())
		wg.Wait()
		p.limit.set(smaller)
		if sendErr != nil || receiveErr != nil {
			t.Fatalf("sending: %v, receiving: %v", sendErr, receiveErr)
		}
		if string(sent) != string(received) {
			t.Fatal("what arrived is not what was sent")
		}
		exchangeOver(t, p, listener)
		dialed, accepted = connect(t, p, listener)
		p.limit.set(9000)
		setMTU(t, p.here, 9000)
		setMTU(t, p.there, 9000)
		exchange(t, dialed, accepted)
		testTCPBulk(t, p, f)
		p.limit.set(0)
		setMTU(t, p.here, mtu)
		setMTU(t, p.there, mtu)
	}
	for _, bad := range []int{-1, 0, netstack.MinMTU - 1, 1 << 17} {
		if err := p.here.SetMTU(bad); err == nil {
			t.Errorf("MTU %d was taken", bad)
		}
	}
}

// countingConn counts what is written, from before it is.
type countingConn struct {
	netstack.TCPConn
	bytes atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.bytes.Add(int64(len(p)))
	return c.TCPConn.Write(p)
}

func setMTU(t *testing.T, stack netstack.Stack, mtu int) {
	t.Helper()
	if err := stack.SetMTU(mtu); err != nil {
		t.Fatal(err)
	}
	if got, err := stack.Device().MTU(); err != nil || got != mtu {
		t.Errorf("device has MTU %d, %v, want %d", got, err, mtu)
	}
}
