package tests

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/lab/line"
	"github.com/homeward-relay/homeward/tests/testnet"
)

const (
	// seedEnv has the seed of a soak's faults, and faultsEnv a regular expression
	// for the names of those that are to happen; default: all.
	seedEnv   = "HOMEWARD_SEED"
	faultsEnv = "HOMEWARD_FAULTS"
)

// TestSoak lets one fault after the other happen to a relay that is in full use,
// with two homes: wireguard-go, and our own binary. After each everything must be
// served again; nothing may be cut but by the end of a process; and what is cut
// must say so: a transfer that ends in order has every byte.
//
// With HOMEWARD_LAB=1 faults are drawn at random, one or two at a time, for ten
// minutes. HOMEWARD_SEED has them drawn as in the run that printed it.
func TestSoak(t *testing.T) {
	full := os.Getenv("HOMEWARD_LAB") != ""
	seed := uint64(1)
	if full {
		seed = uint64(time.Now().Unix())
	}
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("reading %s: %v", seedEnv, err)
		}
	}
	s := newSoak(t, seed, full)
	defer s.keepLogs()
	defer s.load.end()
	wanted := regexp.MustCompile(os.Getenv(faultsEnv))
	faults := slices.DeleteFunc(s.faults(), func(f soakFault) bool { return !wanted.MatchString(f.name) })
	if len(faults) == 0 {
		t.Fatalf("no fault is called like %s, %q", faultsEnv, wanted)
	}
	begin := time.Now()
	if full {
		for time.Since(begin) < 10*time.Minute && !s.load.useless() {
			s.strikeAtRandom(faults)
		}
	} else {
		for _, f := range faults {
			s.strike(f)
		}
	}
	s.finish(begin)
}

// soak is a world whose relay has two homes, and everything that goes on in it.
type soak struct {
	*world
	t      *testing.T
	full   bool
	seed   uint64
	random *rand.Rand

	line *line.Line
	good line.Impairment // of the line, both ways

	// cabin is the second home, our own binary, behind the same router.
	cabin                    *testnet.Relay
	cabinKeys                testnet.TunnelKeys
	relayText, cabinText     string // the Caddyfiles
	relayBinary, cabinBinary string
	relayIP                  string

	load   *workload
	before footprint
	heap   int64
	deck   []soakFault // not drawn yet
	alone  bool        // the fault is the only one

	recovered map[string][]recovery // from faults that were alone, by name, and from pairs
	beside    map[string]int        // how often a fault was one of a pair
}

// twoAtOnce is what recoveries from pairs of faults go by.
const twoAtOnce = "two at once"

// strikeAtRandom has one or two faults happen that have nothing to do with each
// other. Each kind comes once before any comes again.
func (s *soak) strikeAtRandom(all []soakFault) {
	draw := func(beside ...soakFault) (f soakFault, ok bool) {
		if len(s.deck) == 0 {
			s.deck = slices.Clone(all)
			s.random.Shuffle(len(s.deck), func(i, j int) { s.deck[i], s.deck[j] = s.deck[j], s.deck[i] })
		}
		for i, f := range s.deck {
			if !slices.ContainsFunc(beside, f.clashes) {
				s.deck = slices.Delete(s.deck, i, i+1)
				return f, true
			}
		}
		return f, false
	}
	first, _ := draw()
	faults := []soakFault{first}
	if s.random.IntN(3) == 0 {
		if second, ok := draw(first); ok {
			faults = append(faults, second)
		}
	}
	s.strike(faults...)
	time.Sleep(time.Duration(s.random.IntN(2000)) * time.Millisecond)
}

// strike has faults happen at the same time, and waits until everything is served
// again.
func (s *soak) strike(faults ...soakFault) {
	var names []string
	var harms []harm
	for _, f := range faults {
		names = append(names, f.name)
		harms = append(harms, f.harms...)
	}
	name := strings.Join(names, " and ")
	s.alone = len(faults) == 1
	s.load.mu.Lock()
	s.load.fault = name
	s.load.mu.Unlock()
	end := s.load.troubles.begin(harms)
	begun := time.Now()
	var hold time.Duration
	var mend []func()
	for _, f := range faults {
		if m := f.begin(); m != nil {
			mend = append(mend, m)
		}
		lasts := f.least / 2
		if s.full {
			lasts = f.least + time.Duration(s.random.Int64N(int64(f.most-f.least)+1))
		}
		hold = max(hold, lasts)
	}
	time.Sleep(hold)
	for i, m := range mend {
		if i > 0 && s.full {
			time.Sleep(time.Duration(s.random.IntN(1000)) * time.Millisecond)
		}
		m()
	}
	mended := time.Now()
	r := s.awaitServed(mended)
	end()
	s.load.leaveCut()
	kind := name
	if !s.alone {
		kind = twoAtOnce
		for _, f := range faults {
			s.beside[f.name]++
		}
	}
	s.recovered[kind] = append(s.recovered[kind], r)
	s.t.Logf("%s %s: lasted %.1f s, served anew after %.2f s, open ones after %.2f s, last of all %s", begun.Format("15:04:05.000"), name,
		mended.Sub(begun).Seconds(), r.anew.Seconds(), r.open.Seconds(), r.last)
}

// finish ends the soak, in which everything must serve and nothing be left behind.
func (s *soak) finish(begin time.Time) {
	t := s.t
	took := time.Since(begin)
	if s.relayIP != testnet.RelayIP {
		// So that what is open to the former address ends.
		s.strike(s.relayMoves())
	}
	s.load.finish()
	s.awaitServed(time.Now())
	s.load.paused.Store(true)
	s.expectBefore()
	heap := heapInUse(s.t, s.relay)
	s.load.end()
	s.relay.Stop()
	s.cabin.Stop()
	testnet.Eventually(t, time.Minute, func() error {
		if left := append(processesOf(t, s.relayBinary), processesOf(t, s.cabinBinary)...); len(left) > 0 {
			return fmt.Errorf("processes are left: %v", left)
		}
		return nil
	})
	if panicked := regexp.MustCompile(`(?m)^panic: .*|^fatal error: .*`).FindString(s.home.Log().String()); panicked != "" {
		t.Errorf("wireguard-go panicked: %s", panicked)
	}

	var lines strings.Builder
	fmt.Fprintf(&lines, "Soak of %.0f s with seed %d: %s; heap %d MiB before and %d MiB after.\n", took.Seconds(), s.seed, &s.load.soakCounts, s.heap>>20, heap>>20)
	fmt.Fprintf(&lines, "%-38s %5s %7s %22s %22s", "after", "alone", "in pair", "new ones served (max)", "open ones go on (max)")
	kinds := maps.Clone(s.beside)
	for kind := range s.recovered {
		kinds[kind] += 0
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&lines, "\n%-38s %5d %7d", kind, len(s.recovered[kind]), kinds[kind])
		var anew, open []float64
		for _, r := range s.recovered[kind] {
			anew, open = append(anew, r.anew.Seconds()), append(open, r.open.Seconds())
		}
		if len(anew) > 0 {
			fmt.Fprintf(&lines, " %10.2f s (%6.2f s) %10.2f s (%6.2f s)", median(anew), slices.Max(anew), median(open), slices.Max(open))
		}
	}
	figure(t, "%s", &lines)
}

// expectBefore waits until the relay holds no more than before the soak. Idle
// connections to home, and what is left of clients that have gone, end in time.
func (s *soak) expectBefore() {
	s.t.Helper()
	testnet.Eventually(s.t, 3*time.Minute, func() error {
		now := measure(s.t, s.relay)
		if now.goroutines > s.before.goroutines {
			return fmt.Errorf("%d goroutines, before %d:\n%s\nbefore:\n%s", now.goroutines, s.before.goroutines, now.profile, s.before.profile)
		}
		if len(now.descriptors) > len(s.before.descriptors)+spareSockets {
			return fmt.Errorf("%d descriptors, before %d:\n%q\nbefore:\n%q", len(now.descriptors), len(s.before.descriptors), now.descriptors, s.before.descriptors)
		}
		if heap := heapInUse(s.t, s.relay); heap > s.heap+heapMore {
			return fmt.Errorf("the heap is %d MiB, before %d MiB", heap>>20, s.heap>>20)
		}
		return nil
	})
}

// keepLogs has the processes' whole logs kept if the test has failed: `go test
// -artifacts` says where. What led to a failure may be minutes back.
func (s *soak) keepLogs() {
	if !s.t.Failed() {
		return
	}
	for name, log := range map[string]*testnet.Log{"relay": s.relay.Log, "cabin": s.cabin.Log, "home": s.home.Log()} {
		testnet.WriteFile(s.t, filepath.Join(s.t.ArtifactDir(), name+".log"), []byte(log.String()), 0o644)
	}
}
