package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// kinds are what a traffic can be: each measures once.
var kinds = map[string]func(*run, context.Context) (*result, error){
	kindBulk:     (*run).bulk,
	kindMany:     (*run).many,
	kindRequests: (*run).requests,
	kindPing:     (*run).ping,
	kindRecovery: (*run).recovery,

	kindHTTPS:     (*run).https,
	kindBrowser:   (*run).browser,
	kindWebSocket: (*run).websocket,
	kindUpload:    (*run).upload,
	kindUDP:       (*run).datagrams,
	kindIdle:      (*run).idle,
}

const (
	kindBulk     = "bulk"
	kindMany     = "many"
	kindRequests = "requests"
	kindPing     = "ping"
	kindRecovery = "recovery"

	kindHTTPS     = "https"
	kindBrowser   = "browser"
	kindWebSocket = "websocket"
	kindUpload    = "upload"
	kindUDP       = "udp"
	kindIdle      = "idle"
)

// run is a traffic that is measured with a contender.
type run struct {
	*World
	running Running
	traffic *Traffic

	// seed of data that look random.
	seed uint64

	// healed is closed when the last of the scenario's faults has happened.
	healed <-chan struct{}
}

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
	metricDropped  = "line drops"

	metricHostDropped = "host drops"
	metricOld         = "old connection ms"
	metricNew         = "new connection ms"
	metricLost        = "lost connections"

	metricSeconds       = "seconds"
	metricLostDatagrams = "lost %"
	metricOpen          = "open s"
	metricPerConnection = "relay KiB/connection"
)

// result is what one run of a traffic showed.
type result struct {
	metrics map[string]float64

	// series is the throughput of each second, in Mbit/s, as iperf3 prints it.
	series []float64
}

// metricBytes is what CPU time is divided by. It is in no table.
const metricBytes = "bytes"

// startServices starts what traffic talks to at home, on all of home's
// addresses.
func (w *World) startServices(t testing.TB) {
	t.Helper()
	w.startIperf(t)
	w.startEcho(t)
	w.startWeb(t)
	w.startUpload(t)
	w.startStreams(t)
	w.startDatagrams(t)
}

// measure runs the traffic once, with what runs beside it.
func (r *run) measure(ctx context.Context) (found *result, err error) {
	if r.traffic.Beside != nil {
		ended, err := r.beside(ctx)
		if err != nil {
			return nil, err
		}
		defer func() {
			if besideErr := ended(); err == nil && besideErr != nil {
				found, err = nil, besideErr
			}
		}()
	}
	return kinds[r.traffic.Kind](r, ctx)
}

// beside starts what runs beside the traffic, and returns a function that ends
// it, whose error is that it had ended before.
func (r *run) beside(ctx context.Context) (ended func() error, err error) {
	traffic := *r.traffic.Beside
	traffic.Seconds = r.traffic.Seconds + int(askLimit/time.Second)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := r.World.bulk(ctx, &traffic)
		done <- err
	}()
	ended = func() error {
		defer cancel()
		select {
		case err := <-done:
			return errors.Join(errors.New("what ran beside ended before its time"), err)
		default:
			cancel()
			<-done // ended by us, which it reports as an error
			return nil
		}
	}
	if err := pause(ctx, 2*time.Second); err != nil { // until its queue is full
		return nil, errors.Join(err, ended())
	}
	return ended, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
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
