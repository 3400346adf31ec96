package line

import (
	"math"
	"testing"
	"time"
)

// run offers count packets of size bytes at even distances and returns their
// fates.
func run(s *scheduler, count, size int, every time.Duration) (arrived []time.Duration, sent []time.Duration) {
	for n := range count {
		now := time.Duration(n) * every
		d := s.offer(now, size)
		for _, at := range d.at[:d.n] {
			arrived = append(arrived, at)
			sent = append(sent, now)
		}
	}
	return arrived, sent
}

func TestRateIsExact(t *testing.T) {
	const rate, size = 26_900_000, 1400
	s := newScheduler(Impairment{Rate: rate, QueueTime: Duration(500 * time.Millisecond)}, 1)
	// Offered twice as fast as the line is, for 10 s.
	every := airtime(size, rate) / 2
	arrived, _ := run(s, int(10*time.Second/every), size, every)
	elapsed := arrived[len(arrived)-1] - arrived[0]
	got := float64(len(arrived)-1) * size * 8 / elapsed.Seconds()
	if math.Abs(got/rate-1) > 0.0001 {
		t.Errorf("%.0f bit/s, want %d", got, rate)
	}
	if s.counters.Dropped == 0 {
		t.Error("nothing was dropped at twice the rate")
	}
}

func TestQueueIsBounded(t *testing.T) {
	for _, test := range []struct {
		name       string
		impairment Impairment
		want       time.Duration
	}{
		{"by time", Impairment{Rate: 8_000_000, QueueTime: Duration(500 * time.Millisecond)}, 500 * time.Millisecond},
		{"by bytes", Impairment{Rate: 8_000_000, QueueBytes: 50_000}, 50 * time.Millisecond},
		{"by the lesser", Impairment{Rate: 8_000_000, QueueBytes: 50_000, QueueTime: Duration(20 * time.Millisecond)}, 20 * time.Millisecond},
		{"by default", Impairment{Rate: 8_000_000}, defaultQueueTime},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScheduler(test.impairment, 1)
			arrived, sent := run(s, 20_000, 1000, 100*time.Microsecond)
			var longest time.Duration
			for n := range arrived {
				longest = max(longest, arrived[n]-sent[n])
			}
			// One packet's airtime more, for the packet itself and for the one
			// that was let in when the queue was just full.
			if longest < test.want || longest > test.want+2*airtime(1000, 8_000_000) {
				t.Errorf("the longest stay is %s, want %s", longest, test.want)
			}
		})
	}
}

func TestDelayAndJitter(t *testing.T) {
	s := newScheduler(Impairment{Delay: Duration(15 * time.Millisecond), Jitter: Duration(4 * time.Millisecond)}, 1)
	arrived, sent := run(s, 10_000, 100, time.Millisecond)
	var total time.Duration
	for n := range arrived {
		took := arrived[n] - sent[n]
		if took < 15*time.Millisecond || took > 19*time.Millisecond {
			t.Fatalf("packet %d took %s", n, took)
		}
		if n > 0 && arrived[n] < arrived[n-1] {
			t.Fatalf("jitter reordered packet %d", n)
		}
		total += took
	}
	// Keeping the order makes packets wait for late ones before them, so the
	// mean is above the middle.
	if mean := total / time.Duration(len(arrived)); mean < 17*time.Millisecond || mean > 18*time.Millisecond {
		t.Errorf("mean %s", mean)
	}
}

func TestLossWithinStatistics(t *testing.T) {
	const count = 200_000
	for _, test := range []struct {
		name       string
		impairment Impairment
		want       float64
		tolerance  float64
	}{
		{"0.1 %", Impairment{Loss: 0.001}, 0.001, 4 * math.Sqrt(0.001/count)},
		{"1 %", Impairment{Loss: 0.01}, 0.01, 4 * math.Sqrt(0.01/count)},
		// In the long run a tenth of the time is bad, with half of it lost.
		{"bursts", Impairment{BurstLoss: &Bursts{ToBad: 0.01, ToGood: 0.09, Loss: 0.5}}, 0.05, 0.005},
		{"outage", Impairment{Outage: true}, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScheduler(test.impairment, 7)
			arrived, _ := run(s, count, 100, time.Microsecond)
			got := 1 - float64(len(arrived))/count
			if math.Abs(got-test.want) > test.tolerance {
				t.Errorf("lost %.5f, want %.5f ± %.5f", got, test.want, test.tolerance)
			}
			if s.counters.Lost+s.counters.Passed != count {
				t.Errorf("counted %+v", s.counters)
			}
		})
	}
}

func TestDuplicatesAndReordering(t *testing.T) {
	s := newScheduler(Impairment{Delay: Duration(time.Millisecond), Duplicate: 0.02, Reorder: 0.05, ReorderDelay: Duration(3 * time.Millisecond)}, 3)
	arrived, sent := run(s, 50_000, 100, 100*time.Microsecond)
	held := 0
	for n := range arrived {
		if arrived[n]-sent[n] == 4*time.Millisecond {
			held++
		}
	}
	duplicates := len(arrived) - 50_000
	if math.Abs(float64(duplicates)-1000) > 150 || s.counters.Duplicated != uint64(duplicates) {
		t.Errorf("%d duplicates, counted %d, want about 1000", duplicates, s.counters.Duplicated)
	}
	if math.Abs(float64(held)-2550) > 300 {
		t.Errorf("%d held back, want about 2550", held)
	}
}

func TestSameSeedSameFate(t *testing.T) {
	impairment := Impairment{Rate: 50_000_000, Loss: 0.01, Jitter: Duration(time.Millisecond), BurstLoss: &Bursts{0.001, 0.1, 0.5}, Reorder: 0.01, Duplicate: 0.01}
	fate := func(seed uint64) []time.Duration {
		arrived, _ := run(newScheduler(impairment, seed), 20_000, 1000, 200*time.Microsecond)
		return arrived
	}
	first, again, other := fate(5), fate(5), fate(6)
	if len(first) != len(again) {
		t.Fatalf("%d and %d packets", len(first), len(again))
	}
	for n := range first {
		if first[n] != again[n] {
			t.Fatalf("packet %d: %s and %s", n, first[n], again[n])
		}
	}
	if len(first) == len(other) {
		same := true
		for n := range first {
			same = same && first[n] == other[n]
		}
		if same {
			t.Error("another seed, the same fate")
		}
	}
}

// Turning loss on must not change the jitter of the packets that pass.
func TestSettingsHaveTheirOwnChance(t *testing.T) {
	without, _ := run(newScheduler(Impairment{Reorder: 0.1}, 9), 1000, 100, 10*time.Millisecond)
	s := newScheduler(Impairment{Reorder: 0.1, Loss: 0.3}, 9)
	with, _ := run(s, 1000, 100, 10*time.Millisecond)
	seen := make(map[time.Duration]bool)
	for _, at := range without {
		seen[at] = true
	}
	for _, at := range with {
		if !seen[at] {
			t.Fatalf("a packet arrives at %s only if others are lost", at)
		}
	}
}
