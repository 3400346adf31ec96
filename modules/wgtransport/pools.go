package wgtransport

import (
	"container/list"
	"sync"
	"time"
)

// maxPools bounds the names that connections are kept open for at once. Where
// a site answers for any name, clients choose the names, and each would hold
// connections to home until they time out. A relay with more names than this
// under load only loses the reuse of connections for the rarest of them.
const maxPools = 128

// poolKey is what all connections of a pool have in common.
type poolKey struct {
	secure     bool
	serverName string
}

// pools holds a pool of connections for each server name, so that no request
// travels on a connection that was verified for another name than its own. It
// closes a pool when nothing has used it for a while, when it is the least
// recently used of too many, and after close, in each case not before the
// requests that use it are done.
type pools struct {
	make func(poolKey) *pool
	last func() // called whenever no pool is left after close
	idle time.Duration
	max  int

	mu     sync.Mutex
	open   map[poolKey]*pool
	recent list.List // of open's *pool, the most recently used first
	live   int       // open pools, and former ones whose requests go on
	closed bool
}

func newPools(make func(poolKey) *pool, last func(), idle time.Duration) *pools {
	return &pools{make: make, last: last, idle: idle, max: maxPools, open: map[poolKey]*pool{}}
}

// acquire returns the pool for key, which the caller must release. It works
// after close too: a request may outlive its configuration and be retried.
func (s *pools) acquire(key poolKey) *pool {
	s.mu.Lock()
	p, ok := s.open[key]
	if !ok {
		p = s.make(key)
		p.key = key
		p.element = s.recent.PushFront(p)
		s.open[key] = p
		s.live++
	}
	s.recent.MoveToFront(p.element)
	p.users++
	p.uses++
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	var unused []*pool
	for len(s.open) > s.max {
		oldest := s.recent.Back().Value.(*pool)
		if s.remove(oldest) {
			unused = append(unused, oldest)
		}
	}
	s.mu.Unlock()
	s.finish(unused)
	return p
}

func (s *pools) release(p *pool) {
	s.mu.Lock()
	p.users--
	var unused []*pool
	switch {
	case p.users > 0:
	case p.removed:
		unused = append(unused, p)
	case s.closed:
		s.remove(p)
		unused = append(unused, p)
	default:
		uses := p.uses
		p.timer = time.AfterFunc(s.idle, func() { s.expire(p, uses) })
	}
	s.mu.Unlock()
	s.finish(unused)
}

// expire removes p if nothing has used it since it had been used uses times.
func (s *pools) expire(p *pool, uses uint64) {
	s.mu.Lock()
	expired := p.uses == uses && p.users == 0 && !p.removed
	if expired {
		s.remove(p)
	}
	s.mu.Unlock()
	if expired {
		s.finish([]*pool{p})
	}
}

func (s *pools) close() {
	s.mu.Lock()
	s.closed = true
	var unused []*pool
	for _, p := range s.open {
		if p.users == 0 {
			s.remove(p)
			unused = append(unused, p)
			continue
		}
		p.closeIdle()
	}
	s.mu.Unlock()
	s.finish(unused)
}

// remove takes p from those that requests may get, with s.mu held. It says
// whether p is in nobody's use and so is to be finished by the caller.
func (s *pools) remove(p *pool) (unused bool) {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	delete(s.open, p.key)
	s.recent.Remove(p.element)
	p.removed = true
	return p.users == 0
}

// finish closes pools that have been removed and have no users.
func (s *pools) finish(unused []*pool) {
	for _, p := range unused {
		p.close()
	}
	s.mu.Lock()
	s.live -= len(unused)
	last := s.closed && s.live == 0
	s.mu.Unlock()
	if last {
		s.last()
	}
}
