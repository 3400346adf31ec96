package stacktest

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

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

// wantSoon has something measured that must not wait for a reader, each time with
// another stack. A busy machine may be late once, what waits is late each time.
func wantSoon(t *testing.T, what string, measure func() time.Duration) {
	t.Helper()
	var took time.Duration
	for range 3 {
		if took = measure(); took <= soon {
			return
		}
	}
	t.Errorf("%s took %v", what, took)
}

func testCloseUnread(t *testing.T, newStack New) {
	wantSoon(t, "closing", func() time.Duration {
		stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
		stop := fill(t, stack)
		defer stop()
		start := time.Now()
		if err := stack.Close(); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	})
}

func testDialUnread(t *testing.T, newStack New) {
	wantSoon(t, "dialing", func() time.Duration {
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
		return time.Since(start)
	})
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
	wantSoon(t, "a write of four packets", func() (slowest time.Duration) {
		stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
		listener, err := stack.ListenTCP(netip.MustParseAddrPort("[::]:80"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		stop := fill(t, stack)
		defer stop()
		for _, f := range families {
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
				slowest = max(slowest, time.Since(start))
			}
		}
		return slowest
	})
}
