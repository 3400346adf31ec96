package relay

import (
	"context"
	"sync"
)

// Group is a set of running Streams. The zero value is empty and ready.
type Group struct {
	mu   sync.Mutex
	live map[*Stream]struct{}

	// empty is closed when the last Stream has left; nil while nobody waits.
	empty chan struct{}
}

// Run is s.Run with s in the group for as long as it lasts.
func (g *Group) Run(s *Stream) Result {
	g.mu.Lock()
	if g.live == nil {
		g.live = make(map[*Stream]struct{})
	}
	g.live[s] = struct{}{}
	g.mu.Unlock()

	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.live, s)
		if len(g.live) == 0 && g.empty != nil {
			close(g.empty)
			g.empty = nil
		}
	}()
	return s.Run()
}

// Len returns the number of running Streams.
func (g *Group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.live)
}

// Abort aborts all Streams that are in the group now.
func (g *Group) Abort(reason Reason) {
	g.mu.Lock()
	streams := make([]*Stream, 0, len(g.live))
	for s := range g.live {
		streams = append(streams, s)
	}
	g.mu.Unlock()
	for _, s := range streams {
		s.Abort(reason)
	}
}

// Wait returns when the group is empty, or with ctx's error when that is done.
func (g *Group) Wait(ctx context.Context) error {
	g.mu.Lock()
	if len(g.live) == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.mu.Unlock()

	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
