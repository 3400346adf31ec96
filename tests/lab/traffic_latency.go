package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func (w *World) startEcho(t testing.TB) {
	t.Helper()
	listener := w.Home.Listen(t, "tcp", ":"+strconv.Itoa(askPort))
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test is over
			}
			go func() {
				defer conn.Close()
				// Not as a socket, which would take two descriptors more: a pipe.
				io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, make([]byte, 2<<10))
			}()
		}
	}()
}

// Reachable waits until the relay leads home.
func (w *World) Reachable(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		_, err := w.ask(ctx, []byte("?"))
		if err == nil {
			return nil
		}
		if pause(ctx, 100*time.Millisecond) != nil {
			return fmt.Errorf("home cannot be reached, %s after the line was made good: %w", within, err)
		}
	}
}

// reachableWithin is longer than WireGuard's customary keepalive of 25 s, which
// brings back a home whose address has changed.
const reachableWithin = 30 * time.Second

// askLimit is when a client has given up on an answer.
const askLimit = 10 * time.Second

// dialEcho connects to home's echo by way of the relay.
func (w *World) dialEcho(ctx context.Context) (net.Conn, error) {
	return w.Client.Dial(ctx, "tcp", net.JoinHostPort(testnet.RelayIP, strconv.Itoa(askPort)))
}

// ask sends a message on a new connection, waits for it to come back and
// returns how long all of that took.
func (w *World) ask(ctx context.Context, message []byte) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	begin := time.Now()
	conn, err := w.dialEcho(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if err := exchange(conn, message); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

func exchange(conn net.Conn, message []byte) error {
	if _, err := conn.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, len(message)))
	return err
}

const requestSize = 512

// requests asks one after the other, each on a connection of its own.
func (r *run) requests(ctx context.Context) (*result, error) {
	message := make([]byte, requestSize)
	return r.inTurn(ctx, func(ctx context.Context) (time.Duration, error) { return r.ask(ctx, message) })
}

// inTurn asks one after the other as long as the traffic runs. One that fails
// is counted, unless it fails with a wrongAnswer.
func (r *run) inTurn(ctx context.Context, ask func(context.Context) (time.Duration, error)) (*result, error) {
	begin := time.Now()
	end := begin.Add(time.Duration(r.traffic.Seconds) * time.Second)
	var took []time.Duration
	var failure error
	failed := 0
	for time.Now().Before(end) {
		d, err := ask(ctx)
		var wrong wrongAnswer
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.As(err, &wrong):
			return nil, err
		case err != nil:
			failure = err
			failed++
		default:
			took = append(took, d)
		}
	}
	if len(took) == 0 {
		return nil, fmt.Errorf("%d requests and no answer: %w", failed, failure)
	}
	found, err := latencies(took)
	if err != nil {
		return nil, err
	}
	found.metrics[metricRequests] = float64(len(took)) / time.Since(begin).Seconds()
	found.metrics[metricFailed] = float64(failed)
	return found, nil
}

// pingInterval is how often a byte is sent.
const pingInterval = 20 * time.Millisecond

// ping sends a byte at even distances on one connection, whether or not the
// one before has returned, and watches them return.
func (r *run) ping(ctx context.Context) (*result, error) {
	duration := time.Duration(r.traffic.Seconds) * time.Second
	ctx, cancel := context.WithTimeout(ctx, duration+30*time.Second)
	defer cancel()
	conn, err := r.dialEcho(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	return watchEcho(ctx, conn, duration)
}

// watchEcho is ping on a connection that comes back byte by byte, and that is
// closed when ctx is done.
func watchEcho(ctx context.Context, conn net.Conn, duration time.Duration) (*result, error) {
	if err := exchange(conn, []byte("?")); err != nil {
		return nil, err
	}

	count := int(duration / pingInterval)
	begin := time.Now()
	sent := make([]time.Time, count)
	for n := range sent {
		sent[n] = begin.Add(time.Duration(n) * pingInterval)
	}
	go func() {
		for n := range count {
			if pause(ctx, time.Until(sent[n])) != nil {
				return
			}
			if _, err := conn.Write([]byte{1}); err != nil {
				return
			}
		}
	}()
	took := make([]time.Duration, 0, count)
	var gap time.Duration
	last := begin
	buf := make([]byte, 256)
	for len(took) < count {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, fmt.Errorf("after %d of %d bytes: %w", len(took), count, err)
		}
		now := time.Now()
		gap = max(gap, now.Sub(last))
		last = now
		for range n {
			took = append(took, now.Sub(sent[len(took)]))
		}
	}
	found, err := latencies(took)
	if err != nil {
		return nil, err
	}
	found.metrics[metricGap] = milliseconds(gap)
	return found, nil
}
