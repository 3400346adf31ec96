package lab

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// attemptInterval is how often a client that gets no answer tries a new
// connection beside those that it waits for.
const attemptInterval = 250 * time.Millisecond

// recoverySeconds is when a client has given up, unless the scenario says
// otherwise: later than WireGuard's slowest customary way back, a keepalive
// after 25 s.
const recoverySeconds = 40

// recovery opens a connection, leaves it idle while the faults happen, and
// watches from the last one on how long it takes until it answers again, and
// until a new connection does.
func (r *run) recovery(ctx context.Context) (*result, error) {
	old, err := r.dialEcho(ctx)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	if err := exchange(old, []byte("before")); err != nil {
		return nil, fmt.Errorf("before any fault: %w", err)
	}
	select {
	case <-r.healed:
	case <-ctx.Done():
		return nil, ctx.Err()
	}

	begin := time.Now()
	end := begin.Add(time.Duration(r.traffic.Seconds) * time.Second)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	old.SetDeadline(end)
	found := &result{metrics: make(map[string]float64)}
	var both sync.WaitGroup
	var oldErr error
	var oldTook, newTook time.Duration
	both.Go(func() {
		oldErr = exchange(old, []byte("after"))
		oldTook = time.Since(begin)
	})
	both.Go(func() { newTook = r.firstAnswer(ctx, begin) })
	both.Wait()

	found.metrics[metricLost] = 1
	if oldErr == nil {
		found.metrics[metricLost] = 0
		found.metrics[metricOld] = milliseconds(oldTook)
	}
	if newTook == 0 {
		return nil, fmt.Errorf("no new connection brought an answer within %d s", r.traffic.Seconds)
	}
	found.metrics[metricNew] = milliseconds(newTook)
	return found, nil
}

// firstAnswer tries new connections until one brings an answer, and returns
// when that was, counted from begin; or 0 if ctx is done before.
func (r *run) firstAnswer(ctx context.Context, begin time.Time) time.Duration {
	answered := make(chan time.Duration, 1)
	ctx, cancel := context.WithCancel(ctx)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	defer cancel()
	for {
		attempts.Go(func() {
			if _, err := r.ask(ctx, []byte("?")); err != nil {
				return
			}
			select {
			case answered <- time.Since(begin):
			default:
			}
		})
		select {
		case took := <-answered:
			return took
		case <-ctx.Done():
			return 0
		case <-time.After(attemptInterval):
		}
	}
}
