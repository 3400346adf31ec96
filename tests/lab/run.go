package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/lab/line"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// Sample is one measurement: a contender, a traffic, a round.
type Sample struct {
	Scenario, Variant, Traffic, Contender string
	Round                                 int
	Metrics                               map[string]float64
	Series                                []float64
	Err                                   string // instead of figures
	Unable                                string // instead of figures: what the contender does not have
}

// entry is a contender in its world.
type entry struct {
	contender Contender
	versions  string
	absent    string // why it does not take part
	world     *World
	running   Running
	scope     *scope

	// cable is whether its world has a cable in place of the line.
	cable bool

	// t is the test of all scenarios, which worlds outlive one of.
	t testing.TB

	// last is what was measured last, and failed whether that could not be
	// measured. restarts say when the contender had to be started anew.
	last     string
	failed   bool
	restarts []string
}

// enter starts every contender in a world of its own. One that cannot be had
// is an entry that says why.
func enter(t testing.TB, contenders []Contender) []*entry {
	t.Helper()
	var entries []*entry
	for _, contender := range contenders {
		e := &entry{contender: contender, t: t}
		entries = append(entries, e)
		versions, err := contender.Obtain(t)
		if err != nil {
			e.absent = err.Error()
			t.Logf("%s takes no part: %v", contender.Name(), err)
			continue
		}
		e.versions = versions
		if err := e.start(); err != nil {
			t.Fatalf("%s: %v", contender.Name(), err)
		}
	}
	return entries
}

// start puts the contender into a new world, in the place of the one that it
// may have had.
func (e *entry) start() error {
	if e.scope != nil {
		e.scope.end()
	}
	e.scope = newScope(e.t)
	congestionControl := customaryTCP
	if contender, ok := e.contender.(tuned); ok {
		congestionControl = contender.CongestionControl()
	}
	e.world = NewWorld(e.scope, congestionControl, e.cable)
	e.running = e.contender.Start(e.scope, e.world)
	e.world.useCongestionControl(e.scope)
	return e.world.Reachable(e.t.Context(), reachableWithin)
}

// ready makes sure that what the measurement before has done to the contender
// is past. One that failed, or does not come back by itself, is started anew:
// a server at home may still wait for the end of what failed.
func (e *entry) ready(t testing.TB) error {
	why := "it failed"
	if !e.failed {
		err := e.world.Reachable(t.Context(), reachableWithin)
		if err == nil {
			return nil
		}
		why = err.Error()
	}
	e.restarts = append(e.restarts, e.last+": "+why)
	t.Logf("%s is started anew after %s: %s", e.contender.Name(), e.last, why)
	return e.start()
}

// use puts the contender into a world with a cable or with a line.
func (e *entry) use(cable bool) error {
	if e.cable == cable {
		return nil
	}
	e.cable = cable
	return e.start()
}

// Run measures a scenario and calls sink with each sample. The contenders take
// turns, and each round begins with another one.
func Run(t testing.TB, scenario *Scenario, entries []*entry, rounds int, sink func(Sample)) {
	t.Helper()
	entries = slices.DeleteFunc(slices.Clone(entries), func(e *entry) bool { return e.world == nil })
	for _, e := range entries {
		if err := e.use(scenario.Cable); err != nil {
			t.Fatalf("%s: %v", e.contender.Name(), err)
		}
	}
	for _, variant := range scenario.Variants {
		for round := range rounds {
			for i := range scenario.Traffic {
				traffic := &scenario.Traffic[i]
				for n := range entries {
					e := entries[(n+round)%len(entries)]
					sample := Sample{Scenario: scenario.Name, Variant: variant.Name, Traffic: traffic.Name, Contender: e.contender.Name(), Round: round + 1}
					sample.Unable = unable(e.contender, traffic)
					if sample.Unable == "" {
						r, err := e.measure(t, scenario, variant, traffic, scenario.Seed+uint64(round))
						e.failed = err != nil
						if err != nil {
							sample.Err = err.Error()
							t.Logf("%s: %v", sample, err)
						} else {
							sample.Metrics, sample.Series = r.metrics, r.series
						}
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
	if err := e.ready(t); err != nil {
		return nil, err
	}
	e.last = strings.Join([]string{scenario.Name, variant.Name, traffic.Name}, "/")
	if err := errors.Join(e.world.forgetPaths(), e.world.restartLine(down, up, seed)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	faults, healed := make(chan error, 1), make(chan struct{})
	go func() { faults <- e.faults(ctx, scenario, variant, healed) }()

	droppedBefore, err := e.world.hostDrops()
	if err != nil {
		return nil, err
	}
	relayBefore, homeBefore := cpu(t, e.running.Relay), cpu(t, e.running.Home)
	r, err := (&run{World: e.world, running: e.running, traffic: traffic, seed: seed, healed: healed}).measure(ctx)
	relaySpent, homeSpent := cpu(t, e.running.Relay)-relayBefore, cpu(t, e.running.Home)-homeBefore
	cancel()
	lineDropped, lineErr := e.world.endLine()
	if err := errors.Join(err, <-faults, lineErr); err != nil {
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
	dropped, err := e.world.hostDrops()
	if err != nil {
		return nil, err
	}
	r.metrics[metricHostDropped] = dropped - droppedBefore
	if e.world.Line != nil {
		r.metrics[metricDropped] = lineDropped
	}
	return r, nil
}

// restartLine makes the line what a measurement wants.
func (w *World) restartLine(down, up line.Impairment, seed uint64) error {
	if w.Line == nil {
		return nil
	}
	return w.Line.Restart(down, up, seed)
}

// endLine makes the line a good one again and returns what it has dropped.
func (w *World) endLine() (dropped float64, err error) {
	if w.Line == nil {
		return 0, nil
	}
	toHome, fromHome, err := w.Line.Counters()
	return float64(toHome.Dropped + fromHome.Dropped), errors.Join(err, w.Line.Change(goodLine, goodLine))
}

// faults does to the line and the router what the scenario says, until ctx is
// done, and closes healed after the last.
func (e *entry) faults(ctx context.Context, scenario *Scenario, variant Variant, healed chan<- struct{}) error {
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
		if fault.ForgetNAT || fault.NewAddress {
			if err := e.world.Reconnect(fault.NewAddress); err != nil {
				return err
			}
		}
		if err := e.world.Line.Change(down, up); err != nil {
			return err
		}
	}
	close(healed)
	return nil
}

func cpu(t testing.TB, processes []*testnet.Process) (spent time.Duration) {
	for _, process := range processes {
		spent += process.CPU(t)
	}
	return spent
}

// resident is the memory of processes in bytes.
func resident(processes []*testnet.Process) (bytes float64) {
	for _, process := range processes {
		if n, err := process.Resident(); err == nil {
			bytes += float64(n)
		}
	}
	return bytes
}

func (s Sample) String() string {
	return fmt.Sprintf("%s/%s/%s/%s/%d", s.Scenario, s.Variant, s.Traffic, s.Contender, s.Round)
}
