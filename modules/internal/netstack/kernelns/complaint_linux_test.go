package kernelns

import (
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestComplaint(t *testing.T) {
	const day = 24 * time.Hour
	var c complaint
	began := time.Now()
	heard := func(from, until time.Duration) (count int) {
		for after := from; after < until; after += replaceMax {
			if c.level(began.Add(after), zap.ErrorLevel) == zap.ErrorLevel {
				count++
			}
		}
		return count
	}
	for _, tt := range []struct {
		from, until time.Duration
		want        int
	}{
		{0, 10 * time.Second, 1},
		{10 * time.Second, time.Minute, 0},
		{time.Minute, 10 * time.Minute, 9},
		{10 * time.Minute, time.Hour, 0},
		{time.Hour, day, 23},
	} {
		if got := heard(tt.from, tt.until); got != tt.want {
			t.Errorf("from %v to %v, the log hears %d times of it, want %d", tt.from, tt.until, got, tt.want)
		}
	}
	if want := int(day / replaceMax); c.attempts != want {
		t.Errorf("%d attempts, want %d", c.attempts, want)
	}
}

// A namespace is lost while no other can be made.
func TestFailingReplacement(t *testing.T) {
	s, logs := newTestStack(t)
	setMTU := func(mtu int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wanted.mtu = mtu
	}
	setMTU(1 << 20) // which the kernel refuses
	loseHolders(t, s)
	attempts := logs.FilterMessageSnippet("namespace anew; trying again")
	eventually(t, "a third attempt", func() bool {
		attempts = logs.FilterMessageSnippet("namespace anew; trying again")
		return attempts.Len() >= 3
	})
	setMTU(1420)
	eventually(t, "another namespace", func() bool { return logs.FilterMessageSnippet("has another network namespace").Len() > 0 })
	loop(t, s)
	if got := attempts.FilterLevelExact(zap.ErrorLevel).Len(); got == 0 || got == attempts.Len() {
		t.Errorf("%d errors in the log for %d attempts, want one a minute", got, attempts.Len())
	}
	if got := attempts.All()[2].ContextMap()["attempts"]; got != int64(3) {
		t.Errorf("the third line counts %v attempts", got)
	}
}
