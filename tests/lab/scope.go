package lab

import (
	"sync"
	"testing"
)

// scope is a test whose cleanup can come before the test's end: a contender
// that does not come back by itself is started anew.
type scope struct {
	testing.TB

	mu       sync.Mutex
	cleanups []func()
}

// newScope returns a scope that ends with t at the latest.
func newScope(t testing.TB) *scope {
	s := &scope{TB: t}
	t.Cleanup(s.end)
	return s
}

// Cleanup implements testing.TB.
func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// end does what there is to clean up, the last first.
func (s *scope) end() {
	for {
		s.mu.Lock()
		last := len(s.cleanups) - 1
		if last < 0 {
			s.mu.Unlock()
			return
		}
		f := s.cleanups[last]
		s.cleanups = s.cleanups[:last]
		s.mu.Unlock()
		f()
	}
}
