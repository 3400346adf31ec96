package wgtransport

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testPools has pools with no connections that can be seen being closed.
func testPools(idle time.Duration, limit int) (s *pools, closed func(*pool) bool, last *atomic.Int64) {
	last = new(atomic.Int64)
	t := new(Transport)
	s = newPools(func(key poolKey) *pool {
		p := &pool{transport: t, upgrading: new(http.Transport)}
		p.ctx, p.cancel = context.WithCancel(context.Background())
		return p
	}, func() { last.Add(1) }, idle)
	s.max = limit
	return s, func(p *pool) bool { return p.ctx.Err() != nil }, last
}

func TestPools(t *testing.T) {
	key := func(name string) poolKey { return poolKey{true, name} }

	t.Run("shared by name", func(t *testing.T) {
		s, closed, _ := testPools(time.Hour, 10)
		a, again, b, plain := s.acquire(key("a")), s.acquire(key("a")), s.acquire(key("b")), s.acquire(poolKey{})
		if a != again || a == b || a == plain {
			t.Error("a pool for each name, and one for each")
		}
		for _, p := range []*pool{a, again, b, plain} {
			s.release(p)
		}
		if closed(a) || s.acquire(key("a")) != a {
			t.Error("a released pool was not kept")
		}
	})
	t.Run("least recently used goes first", func(t *testing.T) {
		s, closed, _ := testPools(time.Hour, 2)
		a, b := s.acquire(key("a")), s.acquire(key("b"))
		s.release(a)
		s.release(b)
		s.release(s.acquire(key("a")))
		c := s.acquire(key("c"))
		if !closed(b) || closed(a) || closed(c) {
			t.Errorf("closed: a %v, b %v, c %v", closed(a), closed(b), closed(c))
		}
	})
	t.Run("not while in use", func(t *testing.T) {
		s, closed, _ := testPools(time.Hour, 1)
		a := s.acquire(key("a"))
		b := s.acquire(key("b"))
		if closed(a) {
			t.Error("a was closed in use")
		}
		if s.acquire(key("a")) == a {
			t.Error("a removed pool was used again")
		}
		s.release(a)
		if !closed(a) {
			t.Error("a was not closed after its last use")
		}
		s.release(b)
		if len(s.open) != 1 || s.recent.Len() != 1 {
			t.Errorf("%d pools are open", len(s.open))
		}
	})
	t.Run("idle", func(t *testing.T) {
		s, closed, _ := testPools(time.Millisecond, 10)
		a := s.acquire(key("a"))
		busy := s.acquire(key("busy"))
		s.release(s.acquire(key("busy")))
		s.release(a)
		eventually(t, "a to be closed", func() bool { return closed(a) })
		if closed(busy) {
			t.Error("a pool in use was closed")
		}
		s.release(busy)
		eventually(t, "all to be closed", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.live == 0 && len(s.open) == 0
		})
	})
	t.Run("close", func(t *testing.T) {
		s, closed, last := testPools(time.Hour, 10)
		a, b := s.acquire(key("a")), s.acquire(key("b"))
		s.release(a)
		s.close()
		if !closed(a) || closed(b) || last.Load() != 0 {
			t.Errorf("closed: a %v, b %v, last %d", closed(a), closed(b), last.Load())
		}
		late := s.acquire(key("late"))
		s.release(b)
		if !closed(b) || last.Load() != 0 {
			t.Error("b was not closed, or late was forgotten")
		}
		s.release(late)
		if !closed(late) || last.Load() != 1 {
			t.Errorf("closed: late %v, last %d", closed(late), last.Load())
		}
	})
	t.Run("close of none", func(t *testing.T) {
		s, _, last := testPools(time.Hour, 10)
		s.close()
		if last.Load() != 1 {
			t.Error("the end was not told")
		}
	})
	t.Run("all at once", func(t *testing.T) {
		s, _, last := testPools(time.Microsecond, 3)
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				for j := range 500 {
					p := s.acquire(key(fmt.Sprint((i * j) % 7)))
					if p.ctx.Err() != nil {
						t.Error("a closed pool was given out")
					}
					s.release(p)
				}
			})
		}
		group.Wait()
		s.close()
		eventually(t, "the end", func() bool { return last.Load() > 0 })
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.live != 0 || len(s.open) != 0 || s.recent.Len() != 0 {
			t.Errorf("left: %d live, %d open, %d listed", s.live, len(s.open), s.recent.Len())
		}
	})
}
