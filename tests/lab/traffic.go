package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// Metrics that a traffic yields, as they are called in tables and CSV.
const (
	metricRate     = "Mbit/s"
	metricP50      = "p50 ms"
	metricP95      = "p95 ms"
	metricMax      = "max ms"
	metricRequests = "requests/s"
	metricFailed   = "failed requests"
	metricGap      = "longest gap ms"
	metricRelayCPU = "relay CPU-s/GiB"
	metricHomeCPU  = "home CPU-s/GiB"
	metricRelayRSS = "relay RSS MiB"
)

// result is what one run of a traffic showed.
type result struct {
	metrics map[string]float64

	// series is the throughput of each second, in Mbit/s, as iperf3 prints it.
	series []float64
}

// startServices starts what traffic talks to at home.
func (w *World) startServices(t testing.TB) {
	t.Helper()
	testnet.Need(t, "iperf3")
	server := testnet.Start(t, "iperf3", w.Home.Command("iperf3", "--server", "--forceflush", "--port", strconv.Itoa(bulkPort)))
	server.WaitLog(t, 0, "Server listening", 10*time.Second)

	listener := w.Home.Listen(t, "tcp", ":"+strconv.Itoa(askPort))
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test is over
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
}

// Reachable waits until every port of the relay leads home.
func (w *World) Reachable(t testing.TB) {
	t.Helper()
	testnet.Eventually(t, 30*time.Second, func() error {
		_, err := w.ask(t.Context(), []byte("?"))
		return err
	})
}

// ask sends a message on a new connection, waits for it to come back and
// returns how long all of that took.
func (w *World) ask(ctx context.Context, message []byte) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	begin := time.Now()
	conn, err := w.Client.Dial(ctx, "tcp", net.JoinHostPort(testnet.RelayIP, strconv.Itoa(askPort)))
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

// run runs a traffic once.
func (w *World) run(ctx context.Context, traffic *Traffic) (*result, error) {
	if traffic.Beside != nil {
		beside := *traffic.Beside
		beside.Seconds = traffic.Seconds + 3
		besideCtx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.bulk(besideCtx, &beside) // ended by us, which it reports as an error
		}()
		defer func() {
			cancel()
			<-done
		}()
		if err := pause(ctx, 2*time.Second); err != nil { // until its queue is full
			return nil, err
		}
	}
	switch traffic.Kind {
	case kindBulk:
		return w.bulk(ctx, traffic)
	case kindRequests:
		return w.requests(ctx, traffic)
	}
	return w.ping(ctx, traffic)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bulk runs iperf3 from the client's side.
func (w *World) bulk(ctx context.Context, traffic *Traffic) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(traffic.Seconds)*time.Second+20*time.Second)
	defer cancel()
	args := []string{"--client", testnet.RelayIP, "--port", strconv.Itoa(bulkPort), "--time", strconv.Itoa(traffic.Seconds),
		"--parallel", strconv.Itoa(traffic.Streams), "--congestion", congestionControl, "--json"}
	if traffic.From == "home" {
		args = append(args, "--reverse")
	}
	out, runErr := w.Client.CommandContext(ctx, "iperf3", args...).Output()
	var report struct {
		Error     string
		Intervals []struct {
			Sum struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			}
		}
		End struct {
			SumReceived struct {
				Bytes   float64
				Seconds float64
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return nil, fmt.Errorf("iperf3 (%w) says nothing that can be read: %w", runErr, err)
	}
	received := report.End.SumReceived
	if received.Bytes == 0 || received.Seconds == 0 {
		return nil, fmt.Errorf("nothing arrived: %s", report.Error)
	}
	r := &result{metrics: map[string]float64{metricRate: received.Bytes * 8 / received.Seconds / 1e6, metricBytes: received.Bytes}}
	for _, interval := range report.Intervals {
		r.series = append(r.series, interval.Sum.BitsPerSecond/1e6)
	}
	return r, nil
}

// metricBytes is what CPU time is divided by. It is in no table.
const metricBytes = "bytes"

const requestSize = 512

// requests asks one after the other, each on a connection of its own.
func (w *World) requests(ctx context.Context, traffic *Traffic) (*result, error) {
	end := time.Now().Add(time.Duration(traffic.Seconds) * time.Second)
	begin := time.Now()
	var took []time.Duration
	failed := 0
	message := make([]byte, requestSize)
	for time.Now().Before(end) {
		d, err := w.ask(ctx, message)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			failed++
		default:
			took = append(took, d)
		}
	}
	r, err := latencies(took)
	if err != nil {
		return nil, err
	}
	r.metrics[metricRequests] = float64(len(took)) / time.Since(begin).Seconds()
	r.metrics[metricFailed] = float64(failed)
	return r, nil
}

// pingInterval is how often a byte is sent.
const pingInterval = 20 * time.Millisecond

// ping sends a byte at even distances on one connection, whether or not the
// one before has returned, and watches them return.
func (w *World) ping(ctx context.Context, traffic *Traffic) (*result, error) {
	duration := time.Duration(traffic.Seconds) * time.Second
	ctx, cancel := context.WithTimeout(ctx, duration+30*time.Second)
	defer cancel()
	conn, err := w.Client.Dial(ctx, "tcp", net.JoinHostPort(testnet.RelayIP, strconv.Itoa(askPort)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
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
	r, err := latencies(took)
	if err != nil {
		return nil, err
	}
	r.metrics[metricGap] = milliseconds(gap)
	return r, nil
}

func latencies(took []time.Duration) (*result, error) {
	if len(took) == 0 {
		return nil, fmt.Errorf("nothing came back")
	}
	slices.Sort(took)
	at := func(part float64) float64 { return milliseconds(took[int(part*float64(len(took)-1))]) }
	return &result{metrics: map[string]float64{metricP50: at(0.5), metricP95: at(0.95), metricMax: at(1)}}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
