package l4wireguard

import (
	"sync"
	"time"
)

// A handler writes lineBurst lines of one kind at once, and then one per
// lineInterval, of those that strangers can cause as often as they like. A person
// who tries a few times finds each try in the log.
const (
	lineBurst    = 10
	lineInterval = time.Second
)

// limiters are the limits of a handler's lines. Each kind has its own: what
// happens often must not hide what happens once.
type limiters struct {
	cut         limiter // a datagram that was too large
	refused     limiter // a client that was not even dialed for
	full        limiter // a client for whom there was no room
	next        limiter // an upstream that was passed over
	unreachable limiter // a client that no upstream took
	evicted     limiter // a flow that had to make room
	unanswered  limiter // a flow that had no answer
}

// limiter lets lineBurst lines through, and one more for each lineInterval that
// has passed. The zero value is ready.
type limiter struct {
	mu         sync.Mutex
	spent      time.Time // when all lines so far will have had their interval
	suppressed int
}

// do calls write, with the number of lines that were suppressed before, unless
// it is too early for another line.
func (l *limiter) do(write func(suppressed int)) {
	l.mu.Lock()
	now := time.Now()
	spent := l.spent
	if spent.Before(now) {
		spent = now
	}
	if spent.Sub(now) > (lineBurst-1)*lineInterval {
		l.suppressed++
		l.mu.Unlock()
		return
	}
	suppressed := l.suppressed
	l.suppressed, l.spent = 0, spent.Add(lineInterval)
	l.mu.Unlock()
	write(suppressed)
}
