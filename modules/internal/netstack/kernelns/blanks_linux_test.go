package kernelns

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/holder"
)

// requests is how many questions the holders have been asked.
func requests(s *Stack) (count int) {
	n := s.place.Load().namespace
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, server := range n.servers {
		server.mu.Lock()
		count += int(server.number)
		server.mu.Unlock()
	}
	return count
}

// takeAtOnce has many take a socket from a stock at the same time.
func takeAtOnce(ctx context.Context, b *blanks, count int) (fds []int, errs []error) {
	var takers sync.WaitGroup
	var mu sync.Mutex
	begin := make(chan struct{})
	for range count {
		takers.Go(func() {
			<-begin
			fd, err := b.take(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				fds = append(fds, fd)
			}
		})
	}
	close(begin)
	takers.Wait()
	return fds, errs
}

// TestBurst empties a stock at once many times over.
func TestBurst(t *testing.T) {
	s, _ := newTestStack(t)
	stock := s.place.Load().stocks.udp4
	before := requests(s)
	const count = 1000
	fds, errs := takeAtOnce(t.Context(), stock, count)
	defer holder.CloseAll(fds)
	if len(errs) > 0 {
		t.Fatalf("%d failed, the first with %v", len(errs), errs[0])
	}
	seen := map[int]bool{}
	for _, fd := range fds {
		if seen[fd] {
			t.Fatalf("two have descriptor %d", fd)
		}
		seen[fd] = true
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
			t.Fatalf("descriptor %d is a socket of type %d, %v", fd, kind, err)
		}
	}
	stock.fills.Wait()
	stock.mu.Lock()
	left := len(stock.stock)
	stock.mu.Unlock()
	if left < blanksKept/2 || left > blanksKept {
		t.Errorf("%d in stock, want %d to %d", left, blanksKept/2, blanksKept)
	}
	// Each question is for more than half a stock, if no taker waits, and for
	// more than a whole one if some do.
	if got, most := requests(s)-before, (count+blanksKept)/(blanksKept/2); got > most {
		t.Errorf("the holders were asked %d times, want %d at most", got, most)
	}
}

// TestBurstFails has more take a socket than there is room for: each is told,
// and when there is room again there are sockets.
func TestBurstFails(t *testing.T) {
	s, _ := newTestStack(t)
	stock := s.place.Load().stocks.udp4
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	room := uint64(descriptors(t) + 50)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: room, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	fds, errs := takeAtOnce(t.Context(), stock, 200)
	holder.CloseAll(fds)
	if len(fds)+len(errs) != 200 || len(errs) < 100 {
		t.Errorf("%d sockets and %d errors", len(fds), len(errs))
	}
	for _, err := range errs {
		if !errors.Is(err, unix.EMFILE) {
			t.Fatal(err)
		}
	}
	restore()
	fds, errs = takeAtOnce(t.Context(), stock, 200)
	holder.CloseAll(fds)
	if len(errs) > 0 {
		t.Errorf("with room again: %v", errs[0])
	}
}

// TestTakeInTime has nobody who could make sockets, and somebody who does not wait for ever.
func TestTakeInTime(t *testing.T) {
	s, _ := newTestStack(t)
	stock := &blanks{namespace: s.place.Load().namespace, domain: unix.AF_INET, kind: unix.SOCK_DGRAM}
	defer stock.close()
	for _, pid := range holders(s) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(pid, syscall.SIGCONT)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := stock.take(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("taking a socket: %v", err)
	}
	stock.mu.Lock()
	defer stock.mu.Unlock()
	if len(stock.waiting) > 0 {
		t.Error("somebody still waits")
	}
}

// TestCloseWhileTaking closes a stock that others take from.
func TestCloseWhileTaking(t *testing.T) {
	s, _ := newTestStack(t)
	before := descriptors(t)
	stock := &blanks{namespace: s.place.Load().namespace, domain: unix.AF_INET, kind: unix.SOCK_DGRAM}
	var takers sync.WaitGroup
	first := make(chan struct{}, 100)
	for range 100 {
		takers.Go(func() {
			for {
				fd, err := stock.take(t.Context())
				if err != nil {
					return
				}
				unix.Close(fd)
				select {
				case first <- struct{}{}:
				default:
				}
			}
		})
	}
	<-first
	stock.close()
	takers.Wait()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}
