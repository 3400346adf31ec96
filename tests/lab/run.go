package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// Sample is one measurement: a contender, a traffic, a round.
type Sample struct {
	Scenario, Variant, Traffic, Contender string
	Round                                 int
	Metrics                               map[string]float64
	Series                                []float64
	Err                                   string // instead of figures
}

// entry is a contender in its world.
type entry struct {
	contender Contender
	versions  string
	absent    string // why it does not take part
	world     *World
	running   Running
}

// enter starts every contender in a world of its own. One that cannot be had
// is an entry that says why.
func enter(t testing.TB, scenario *Scenario, contenders []Contender) []*entry {
	t.Helper()
	var entries []*entry
	for _, contender := range contenders {
		e := &entry{contender: contender}
		entries = append(entries, e)
		versions, err := contender.Obtain(t)
		if err != nil {
			e.absent = err.Error()
			t.Logf("%s takes no part: %v", contender.Name(), err)
			continue
		}
		e.versions = versions
		// On a good line, so that everyone has the same start.
		down, up := scenario.Down, scenario.Up
		down.Loss, up.Loss, down.BurstLoss, up.BurstLoss = 0, 0, nil, nil
		e.world = NewWorld(t, down, up, scenario.Seed)
		e.running = contender.Start(t, e.world)
		e.world.Reachable(t)
	}
	return entries
}

// Run measures a scenario and calls sink with each sample.
func Run(t testing.TB, scenario *Scenario, entries []*entry, rounds int, sink func(Sample)) {
	t.Helper()
	for _, variant := range scenario.Variants {
		for round := range rounds {
			for i := range scenario.Traffic {
				traffic := &scenario.Traffic[i]
				for _, e := range entries {
					if e.world == nil {
						continue
					}
					sample := Sample{Scenario: scenario.Name, Variant: variant.Name, Traffic: traffic.Name, Contender: e.contender.Name(), Round: round + 1}
					r, err := e.measure(t, scenario, variant, traffic, scenario.Seed+uint64(round))
					if err != nil {
						sample.Err = err.Error()
						t.Logf("%s, %s, %s, round %d: %v", sample.Contender, sample.Variant, sample.Traffic, sample.Round, err)
					} else {
						sample.Metrics, sample.Series = r.metrics, r.series
					}
					sink(sample)
				}
			}
		}
	}
}

// measure runs one traffic over a variant of the line, with the scenario's
// faults, and adds what it cost the contender.
func (e *entry) measure(t testing.TB, scenario *Scenario, variant Variant, traffic *Traffic, seed uint64) (*result, error) {
	down, up, err := scenario.lineOf(variant)
	if err != nil {
		return nil, err
	}
	if err := e.world.Line.Restart(down, up, seed); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	faults := make(chan error, 1)
	go func() { faults <- e.faults(ctx, scenario, variant) }()

	relayBefore, homeBefore := cpu(t, e.running.Relay), cpu(t, e.running.Home)
	r, err := e.world.run(ctx, traffic)
	relaySpent, homeSpent := cpu(t, e.running.Relay)-relayBefore, cpu(t, e.running.Home)-homeBefore
	cancel()
	if faultErr := <-faults; err == nil && faultErr != nil {
		err = faultErr
	}
	// Whatever comes next begins on a good line.
	down, up = scenario.Down, scenario.Up
	if changeErr := e.world.Line.Change(down, up); err == nil {
		err = changeErr
	}
	if err != nil {
		return nil, err
	}
	if gib := r.metrics[metricBytes] / (1 << 30); gib > 0 {
		if len(e.running.Relay) > 0 {
			r.metrics[metricRelayCPU] = relaySpent.Seconds() / gib
		}
		if len(e.running.Home) > 0 {
			r.metrics[metricHomeCPU] = homeSpent.Seconds() / gib
		}
	}
	if rss := resident(e.running.Relay); rss > 0 {
		r.metrics[metricRelayRSS] = rss / (1 << 20)
	}
	return r, nil
}

// faults changes the line as the scenario says, until ctx is done.
func (e *entry) faults(ctx context.Context, scenario *Scenario, variant Variant) error {
	begin := time.Now()
	down, up, err := scenario.lineOf(variant)
	for _, fault := range scenario.Faults {
		if err == nil {
			down, up, err = changed(down, up, fault.Down, fault.Up)
		}
		if err != nil {
			return err
		}
		if pause(ctx, time.Until(begin.Add(time.Duration(fault.After)))) != nil {
			return nil
		}
		if err := e.world.Line.Change(down, up); err != nil {
			return err
		}
	}
	return nil
}

func cpu(t testing.TB, processes []*testnet.Process) (spent time.Duration) {
	for _, process := range processes {
		spent += process.CPU(t)
	}
	return spent
}

// resident is the memory of processes in bytes, from /proc/PID/statm.
func resident(processes []*testnet.Process) (bytes float64) {
	for _, process := range processes {
		content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(process.PID), "statm"))
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(content)); len(fields) > 1 {
			pages, _ := strconv.ParseFloat(fields[1], 64)
			bytes += pages * float64(os.Getpagesize())
		}
	}
	return bytes
}

func (s Sample) String() string {
	return fmt.Sprintf("%s/%s/%s/%s/%d", s.Scenario, s.Variant, s.Traffic, s.Contender, s.Round)
}
