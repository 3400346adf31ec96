package stacktest

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkDial measures how long it takes to have a connection, through two
// WireGuard devices that are joined by UDP over loopback. Both ends are stacks
// that newStack makes.
func BenchmarkDial(b *testing.B, newStack New) {
	for _, f := range families {
		b.Run(f.name, func(b *testing.B) {
			p := newUnwatchedPair(b, newStack)
			joinByWireGuard(b, p)
			listener, err := p.there.ListenTCP(netip.AddrPortFrom(f.there, 0))
			if err != nil {
				b.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					conn.Close()
				}
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			dial := func() {
				conn, err := p.here.DialTCP(ctx, netip.AddrPort{}, addrPort(listener.Addr()))
				if err != nil {
					b.Fatal(err)
				}
				conn.SetLinger(0)
				conn.Close()
			}
			dial() // the handshake
			for b.Loop() {
				dial()
			}
		})
	}
}

func newUnwatchedPair(b *testing.B, newStack New) *pair {
	b.Helper()
	here, err := newStack(Config{Name: "here", MTU: mtu, Addresses: hereAddresses})
	if err != nil {
		b.Fatal(err)
	}
	there, err := newStack(Config{Name: "there", MTU: mtu, Addresses: thereAddresses})
	if err != nil {
		here.Close()
		b.Fatal(err)
	}
	b.Cleanup(func() {
		here.Close()
		there.Close()
	})
	return &pair{here: here, there: there, limit: newSizeLimit(mtu)}
}
