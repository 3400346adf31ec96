package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func (w *World) startIperf(t testing.TB) {
	t.Helper()
	testnet.Need(t, "iperf3")
	server := testnet.Start(t, "iperf3", w.Home.Command("iperf3", "--server", "--forceflush", "--port", strconv.Itoa(bulkPort)))
	server.WaitLog(t, 0, "Server listening", 10*time.Second)
}

// bulkLimit is how long after its time a transfer may end: a relay's buffers
// take their time over a line with losses.
const bulkLimit = 20 * time.Second

// bulk runs iperf3 from the client's side.
func (r *run) bulk(ctx context.Context) (*result, error) { return r.World.bulk(ctx, r.traffic) }

func (w *World) bulk(ctx context.Context, traffic *Traffic) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(traffic.Seconds)*time.Second+bulkLimit)
	defer cancel()
	args := []string{"--client", testnet.RelayIP, "--port", strconv.Itoa(bulkPort), "--time", strconv.Itoa(traffic.Seconds),
		"--parallel", strconv.Itoa(traffic.Streams), "--congestion", w.congestionControl, "--json"}
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
