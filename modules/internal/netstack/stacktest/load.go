package stacktest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// serveEcho answers every connection of a listener with what it sends.
func serveEcho(listener net.Listener, wg *sync.WaitGroup) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer conn.Close()
			io.Copy(conn, conn)
		})
	}
}

// echoOnce makes a connection, has some bytes sent back and closes it.
func echoOnce(p *pair, t *testing.T, address netip.AddrPort, payload []byte) error {
	conn, err := p.here.DialTCP(within(t), netip.AddrPort{}, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(payload); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if string(got) != string(payload) {
		return errors.New("echo differs")
	}
	return nil
}

// testManyConnections makes thousands of connections, one after another and
// with a few hundred open at any time, and looks that none is left.
func testManyConnections(t *testing.T, p *pair) {
	total, parallel := 4000, 200
	if testing.Short() {
		total = 400
	}
	listener := listen(t, p, families[0])
	listener.SetDeadline(time.Time{})
	var servers, clients sync.WaitGroup
	servers.Go(func() { serveEcho(listener, &servers) })
	address := addrPort(listener.Addr())
	before := runtime.NumGoroutine()

	work := make(chan int)
	failed := make(chan error, parallel)
	for range parallel {
		clients.Go(func() {
			for i := range work {
				if err := echoOnce(p, t, address, fmt.Appendf(nil, "connection %d", i)); err != nil {
					select {
					case failed <- fmt.Errorf("connection %d: %w", i, err):
					default:
					}
				}
			}
		})
	}
	for i := range total {
		work <- i
	}
	close(work)
	clients.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}

	// The echo servers end when they see the clients' FIN.
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before+5; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines are left of %d", runtime.NumGoroutine(), before)
		}
	}
	listener.Close()
	servers.Wait()
}

// testBusyConnections has many connections send as fast as they can in both
// directions at once. Both stacks then always have something to send while
// something arrives: whoever waits for the wrong thing is stuck here.
func testBusyConnections(t *testing.T, p *pair) {
	const count, size = 40, 1 << 20
	listener := listen(t, p, families[0])
	errs := make(chan error, 4*count)
	run := func(conn netstack.TCPConn) {
		go func() {
			_, err := stream(conn, 1, size)
			errs <- err
		}()
		go func() {
			n, err := io.Copy(io.Discard, conn)
			if err == nil && n != size {
				err = fmt.Errorf("got %d bytes of %d", n, size)
			}
			errs <- err
		}()
	}
	for range count {
		dialed, accepted := connect(t, p, listener)
		run(dialed)
		run(accepted)
	}
	for range 4 * count {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// testParallelDials opens many connections at the same moment and keeps all of
// them open, so that no SYN may be lost for good and none waits for another.
func testParallelDials(t *testing.T, p *pair) {
	count := 1000
	if testing.Short() {
		count = 200
	}
	listener := listen(t, p, families[1])
	var accepted []net.Conn
	done := make(chan error, 1)
	go func() {
		for range count {
			conn, err := listener.Accept()
			if err != nil {
				done <- err
				return
			}
			accepted = append(accepted, conn)
		}
		done <- nil
	}()
	dialed := make([]net.Conn, count)
	errs := make([]error, count)
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			conn, err := p.here.DialTCP(within(t), netip.AddrPort{}, addrPort(listener.Addr()))
			if err != nil {
				errs[i] = err
				return
			}
			dialed[i] = conn
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i := range count {
		dialed[i].Close()
		accepted[i].Close()
	}
}
