package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

const (
	// mostStreams bounds the Streams of a Group that does not say otherwise,
	// where the system's limit of descriptors does not bound them further. It is
	// more than any home answers, and what a small VM has the memory for.
	mostStreams = 16384

	// descriptorsPerStream is what a Stream has of the process's descriptors, two
	// sockets, and descriptorsElsewhere what pipes (of 256), UDP flows (2048) and
	// everything else have. Where there are too few for that, each Stream leaves as
	// many as leastShare says. Without any left this process could accept no
	// connection.
	descriptorsPerStream = 2
	descriptorsElsewhere = 2*256 + 2048 + 128
	leastShare           = 6
)

// ErrTooManyStreams means that the group has no room for another Stream.
var ErrTooManyStreams = errors.New("too many TCP connections")

// Group is a set of running Streams. The zero value is empty and ready.
type Group struct {
	// Max bounds the number of Streams; 0 stands for a number that the limit of
	// descriptors allows.
	Max int

	refused atomic.Uint64

	mu   sync.Mutex
	held int // places of Streams that run, or for which is being dialed
	live map[*Stream]struct{}

	// empty is closed when the last Stream has left; nil while nobody waits.
	empty chan struct{}
}

// Hold takes the place of a Stream that is to be, before it costs a dial. The place
// is free again when release is called, once.
func (g *Group) Hold() (release func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if limit := g.limit(); g.held >= limit {
		g.refused.Add(1)
		if limit < mostStreams {
			return nil, fmt.Errorf("%w: %d are relayed already; a higher limit of open files (LimitNOFILE, ulimit -n) makes room for up to %d", ErrTooManyStreams, limit, mostStreams)
		}
		return nil, fmt.Errorf("%w: %d are relayed already, and there may be no more", ErrTooManyStreams, limit)
	}
	g.held++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.held--
	}, nil
}

func (g *Group) limit() int {
	if g.Max > 0 {
		return g.Max
	}
	return maxStreams(descriptorLimit())
}

// maxStreams is how many Streams there may be with so many descriptors; 0 means
// that nothing is known of a limit.
func maxStreams(descriptors uint64) int {
	if descriptors == 0 {
		return mostStreams
	}
	most := max(descriptors/leastShare, 1)
	if descriptors > descriptorsElsewhere {
		most = max(most, (descriptors-descriptorsElsewhere)/descriptorsPerStream)
	}
	return int(min(most, mostStreams))
}

// Refused returns how many times Hold has found no room.
func (g *Group) Refused() uint64 { return g.refused.Load() }

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
