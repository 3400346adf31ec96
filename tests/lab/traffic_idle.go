package lab

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// openAtOnce is how many clients are busy at the same time.
	openAtOnce = 50

	// answerWithin is when a connection that does not answer is lost.
	answerWithin = 10 * time.Second
)

// idle opens connections, leaves them alone and asks each again: what they
// cost the relay that nobody uses, and whether they are there when they are.
func (r *run) idle(ctx context.Context) (*result, error) {
	conns := make([]net.Conn, r.traffic.Connections)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	before := resident(r.running.Relay)
	begin := time.Now()
	if failed, err := inParallel(len(conns), openAtOnce, func(n int) (err error) {
		conns[n], err = r.open(ctx)
		return err
	}); err != nil {
		return nil, fmt.Errorf("%d of %d connections could not be opened: %w", failed, len(conns), err)
	}
	opened := time.Since(begin)
	if err := pause(ctx, time.Duration(r.traffic.Seconds)*time.Second); err != nil {
		return nil, err
	}
	after := resident(r.running.Relay)
	lost, _ := inParallel(len(conns), openAtOnce, func(n int) error { return askWithin(ctx, conns[n]) })
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}

	found := &result{metrics: map[string]float64{
		metricOpen: opened.Seconds(),
		metricLost: float64(lost),
	}}
	if after > 0 {
		// Memory that the relay had left from before it reuses first, so this
		// may be less than a fresh one would grow.
		found.metrics[metricPerConnection] = (after - before) / (1 << 10) / float64(len(conns))
	}
	return found, nil
}

// open opens a connection that has answered once.
func (r *run) open(ctx context.Context) (net.Conn, error) {
	dialCtx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := r.dialEcho(dialCtx)
	if err != nil {
		return nil, err
	}
	if err := askWithin(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// askWithin exchanges a byte on a connection that has some time for it.
func askWithin(ctx context.Context, conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := exchange(conn, []byte("?")); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

// inParallel calls f with each number below count, with some of them at once,
// and returns how many failed and one of their errors.
func inParallel(count, atOnce int, f func(n int) error) (failed int, err error) {
	var (
		workers sync.WaitGroup
		next    atomic.Int64
		mu      sync.Mutex
		first   error
	)
	for range min(atOnce, count) {
		workers.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= count {
					return
				}
				if err := f(n); err != nil {
					mu.Lock()
					failed++
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	workers.Wait()
	return failed, first
}
