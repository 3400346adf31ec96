package tunnel

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// model is what a search sees of a path.
type model struct {
	carries   int
	roundTrip time.Duration
	loss      float64 // of requests and answers together
	joined    bool    // a smaller packet right behind one that is too large is lost with it
	answers   []netip.Addr

	mu     sync.Mutex
	random *rand.Rand
	sent   int
	last   int // the size of the last packet
	lastAt time.Time
}

func (m *model) ping(ctx context.Context, remote netip.Addr, size int) error {
	m.mu.Lock()
	m.sent++
	lost := m.random.Float64() < m.loss || m.joined && size < m.last && m.last > m.carries && time.Since(m.lastAt) < spacing
	m.last, m.lastAt = size, time.Now()
	m.mu.Unlock()
	if size > m.carries || lost || !slices.Contains(m.answers, remote) {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-time.After(m.roundTrip):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newModel(carries int) *model {
	return &model{carries: carries, roundTrip: 30 * time.Millisecond, random: rand.New(rand.NewPCG(1, 2)), answers: []netip.Addr{homeAddress}}
}

func (m *model) search() *search {
	return &search{ping: m.ping, targets: []netip.Addr{homeAddress}}
}

func TestSearchFindsEverySize(t *testing.T) {
	for size := netstack.MinMTU; size <= netstack.MaxPing+100; size++ {
		synctest.Test(t, func(t *testing.T) {
			m, begun := newModel(size), time.Now()
			want := min(size, netstack.MaxPing)
			if got := m.search().run(t.Context()); got != want {
				t.Errorf("a path of %d: found %d", size, got)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("a path of %d: took %s", size, took)
			}
			if m.sent > 1+4*searchAttempts*searchWidth {
				t.Errorf("a path of %d: %d requests", size, m.sent)
			}
			if atMost := 2*m.roundTrip + time.Duration(len(usualSizes))*spacing; want == netstack.MaxPing && time.Since(begun) > atMost {
				t.Errorf("a path of %d: took %s, want at most %s", size, time.Since(begun), atMost)
			}
		})
	}
}

func TestSearchWherePacketsAreJoined(t *testing.T) {
	for size := netstack.MinMTU; size <= netstack.MaxPing; size++ {
		synctest.Test(t, func(t *testing.T) {
			m := newModel(size)
			m.joined = true
			if got := m.search().run(t.Context()); got != size {
				t.Errorf("a path of %d: found %d", size, got)
			}
		})
	}
}

func TestSearchOnBadLines(t *testing.T) {
	tests := []struct {
		name      string
		roundTrip time.Duration
		loss      float64
	}{
		{"slow", 700 * time.Millisecond, 0},
		{"slower than an attempt waits", 2500 * time.Millisecond, 0},
		{"lossy", 50 * time.Millisecond, 0.05},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, size := range []int{1420, 1412, 1400, 1392, 1340, 1280} {
				synctest.Test(t, func(t *testing.T) {
					m := newModel(size)
					m.roundTrip, m.loss = test.roundTrip, test.loss
					if got := m.search().run(t.Context()); got != size {
						t.Errorf("a path of %d: found %d", size, got)
					}
				})
			}
		})
	}
}

func TestSearchNeverFindsTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(1392)
		m.loss = 0.6
		for range 50 {
			if got := m.search().run(t.Context()); got > 1392 {
				t.Fatalf("found %d", got)
			}
		}
	})
}

func TestSearchTakesTheTargetThatAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(1400)
		s := m.search()
		s.targets = []netip.Addr{netip.MustParseAddr("10.77.0.9"), homeAddress}
		if got := s.run(t.Context()); got != 1400 || s.target != homeAddress {
			t.Errorf("found %d at %s", got, s.target)
		}
	})
}

func TestSearchWithoutAnswer(t *testing.T) {
	for _, test := range []struct {
		name    string
		carries int
		targets []netip.Addr
		want    time.Duration
	}{
		{"no target", 1420, nil, 0},
		{"a mute target", 1420, []netip.Addr{netip.MustParseAddr("10.77.0.9")}, searchAttempts * firstWait},
		{"a path that carries nothing", 1200, []netip.Addr{homeAddress}, searchAttempts * firstWait},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, begun := newModel(test.carries).search(), time.Now()
				s.targets = test.targets
				if got := s.run(t.Context()); got != 0 {
					t.Errorf("found %d", got)
				}
				if took := time.Since(begun); took != test.want {
					t.Errorf("took %s, want %s", took, test.want)
				}
			})
		})
	}
}

func TestSearchEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		begun := time.Now()
		newModel(1333).search().run(ctx)
		if took := time.Since(begun); took > 500*time.Millisecond {
			t.Errorf("took %s", took)
		}
	})
}

// A look whether a line has become larger costs no more than a few packets.
func TestSearchAbove(t *testing.T) {
	for _, test := range []struct {
		name          string
		carries, base int
		exact         bool
		want, atMost  int
	}{
		{"nothing new", 1400, 1400, false, 1400, 2 * searchAttempts},
		{"a usual size", 1412, 1400, false, 1412, 100},
		{"all", 1420, 1400, false, 1420, 2},
		{"nearly the same, exactly", 1405, 1400, true, 1405, 100},
		{"nearly the same", 1405, 1400, false, 1400, 2 * searchAttempts},
		{"nothing above", 1420, 1420, true, 1420, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(test.carries)
				s := m.search()
				s.target, s.wait = homeAddress, leastWait
				if got := s.above(t.Context(), test.base, test.exact); got != test.want {
					t.Errorf("found %d, want %d", got, test.want)
				}
				if m.sent > test.atMost {
					t.Errorf("%d requests, want at most %d", m.sent, test.atMost)
				}
			})
		})
	}
}
