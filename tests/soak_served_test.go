package tests

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// recoveryMax is when everything has to be served again after a fault. It only
	// has to be less than the two minutes and more that WireGuard itself takes at
	// the worst.
	recoveryMax = 2 * time.Minute
)

// recovery is how long it took after a fault until new connections and requests
// were served, and until whoever had a connection or a flow had answers.
type recovery struct {
	anew, open time.Duration
	last       string // what was served last of all
}

// awaitServed waits until everything is served, and says how long it took since
// the fault was over.
func (s *soak) awaitServed(since time.Time) (r recovery) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), recoveryMax)
	defer cancel()
	var waiting sync.WaitGroup
	var mu sync.Mutex
	var missing []string
	wait := func(what string, took *time.Duration, served func() error) {
		waiting.Go(func() {
			var err error
			for {
				if err = served(); err == nil || ctx.Err() != nil {
					break
				}
				s.load.rest(ctx, 20*time.Millisecond)
			}
			mu.Lock()
			defer mu.Unlock()
			now := time.Since(since)
			if now > max(r.anew, r.open) {
				r.last = what
			}
			*took = max(*took, now)
			if err != nil {
				missing = append(missing, fmt.Sprintf("%s: %v", what, err))
			}
		})
	}
	for _, home := range soakHomes {
		wait("a new connection to "+home.name, &r.anew, func() error {
			return s.first(ctx, func(ctx context.Context) error { return s.echoAnew(ctx, home) })
		})
		wait("the page of "+home.name, &r.anew, func() error {
			return s.first(ctx, func(ctx context.Context) error { return s.pageAnew(ctx, home) })
		})
	}
	for _, open := range s.load.lasting {
		wait(open.name, &r.open, func() error { return answeredSince(open.answered.Load(), since) })
	}
	for _, flow := range s.load.flows {
		wait(fmt.Sprintf("UDP client %d of %s", flow.number, flow.home.name), &r.open, func() error {
			return answeredSince(flow.answered.Load(), since)
		})
	}
	waiting.Wait()
	if missing != nil {
		s.t.Fatalf("%s: %v after the end of %q still not served: %s\nthe relay says %s", time.Now().Format("15:04:05.000"),
			recoveryMax, s.load.fault, strings.Join(missing, "; "), s.relay.Admin(s.t, "/wireguard/wg0"))
	}
	return r
}

func answeredSince(last int64, since time.Time) error {
	if last < since.UnixNano() {
		return errors.New("no answer since")
	}
	return nil
}

// attemptEvery is how often first begins another attempt. The first has
// attemptTime; each after it a little more, for the slowest of machines.
const (
	attemptEvery = 500 * time.Millisecond
	attemptTime  = 3 * time.Second
)

// first makes attempts, whatever has become of those before, until one succeeds.
func (s *soak) first(ctx context.Context, attempt func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	defer cancel()
	var last error
	for limit := attemptTime; ; limit += attemptEvery / 2 {
		attempts.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			err := attempt(ctx)
			select {
			case ended <- err:
			case <-time.After(attemptEvery): // somebody has succeeded
			}
		})
		for next := time.After(attemptEvery); next != nil; {
			select {
			case err := <-ended:
				if err == nil {
					return nil
				}
				last = err
			case <-next:
				next = nil
			case <-ctx.Done():
				return cmp.Or(last, ctx.Err())
			}
		}
	}
}

// echoAnew makes a connection and uses it.
func (s *soak) echoAnew(ctx context.Context, home soakHome) error {
	conn, err := s.load.dial(ctx, home.name, home.echo)
	if err != nil {
		return err
	}
	defer conn.drop()
	stop := context.AfterFunc(ctx, conn.drop)
	defer stop()
	return exchangeLine(conn, bufio.NewReader(conn), "anew")
}

// pageAnew asks for a page over a connection of its own.
func (s *soak) pageAnew(ctx context.Context, home soakHome) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := s.load.browser(ctx, home)
	defer client.CloseIdleConnections()
	return s.load.page(ctx, client, home, "/")
}
