package ddns

import "time"

// backoff is a time to wait, which doubles.
type backoff struct {
	next time.Duration
	at   time.Time
}

// failed makes the next wait longer, and returns it.
func (b *backoff) failed() time.Duration {
	b.next = min(max(2*b.next, firstRetry), lastRetry)
	b.at = time.Now().Add(b.next)
	return b.next
}

// left is how much of the wait there still is.
func (b *backoff) left() time.Duration { return max(time.Until(b.at), 0) }

// changes counts those of an address that does not settle, such as that of a peer that
// speaks from two places in turn. DNS would not follow, and the provider would mind.
type changes struct {
	last time.Time
	row  int // that came soon one after the other
	wait backoff
	said bool // that there is a wait
}

func (c *changes) add() {
	if time.Since(c.last) > 2*lastRetry {
		c.row, c.wait = 0, backoff{}
	}
	c.last, c.said = time.Now(), false
	if c.row++; c.row >= changesAtOnce {
		c.wait.failed()
	}
}
