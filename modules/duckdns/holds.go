package duckdns

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"sync"
	"time"

	"go.uber.org/zap"
)

// holds are the TXT records that orders have, by their domains.
type holds struct {
	begin time.Time // of the process

	sync.Mutex
	of map[string]*hold

	// last is the value that was set last in each, by an order that is over if none has
	// the record.
	last map[string]string
}

// processHolds are those of this process, which outlive configurations, as orders can.
var processHolds = newHolds()

func newHolds() *holds {
	return &holds{begin: time.Now(), of: make(map[string]*hold), last: make(map[string]string)}
}

// hold is a record that an order has from before it sets its challenge until it has
// removed it.
type hold struct {
	value string
	over  chan struct{}
	end   *time.Timer // of an order that is never heard of again
}

// longestHold is longer than the ACME client takes before and after its challenge is set.
const longestHold = 20 * time.Minute

// take waits until no other order of this process has the record, and gives it to this one.
func (c *challenge) take(ctx context.Context) error {
	for {
		c.holds.Lock()
		other := c.holds.of[c.domain]
		switch {
		case other == nil:
			c.holds.of[c.domain] = &hold{c.value, make(chan struct{}), time.AfterFunc(longestHold, c.release)}
		case other.value == c.value:
			other.end.Reset(longestHold)
			other = nil
		}
		c.holds.Unlock()
		if other == nil {
			return nil
		}
		select {
		case <-other.over:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// extend gives the order as much time again.
func (c *challenge) extend() {
	c.holds.Lock()
	defer c.holds.Unlock()
	if own := c.holds.of[c.domain]; own != nil && own.value == c.value {
		own.end.Reset(longestHold)
	}
}

// release gives the record to others, if this order has it.
func (c *challenge) release() {
	c.holds.Lock()
	defer c.holds.Unlock()
	if own := c.holds.of[c.domain]; own != nil && own.value == c.value {
		own.end.Stop()
		close(own.over)
		delete(c.holds.of, c.domain)
	}
}

// key is where the storage has the value that was set last. A Caddy that was killed knows
// by it next time what it has left behind itself.
func (c *challenge) key() string { return "duckdns/" + c.domain + "/challenge.json" }

// stored is what the storage has.
type stored struct {
	Value string    `json:"value"`
	Set   time.Time `json:"set"`
}

func (c *challenge) remember(ctx context.Context) {
	c.holds.Lock()
	c.holds.last[c.domain] = c.value
	c.holds.Unlock()
	content, err := json.Marshal(stored{c.value, time.Now()})
	if err == nil {
		err = c.storage.Store(ctx, c.key(), content)
	}
	if err != nil {
		c.log.Warn("storing the challenge", zap.Error(err))
	}
}

// isOurs says whether a value is that of an order of this Caddy's that is over: since this
// order has the record, an earlier one of this process, or of the one before. What another
// one with the same storage has set since this one began may still be wanted.
func (c *challenge) isOurs(ctx context.Context, value string) bool {
	c.holds.Lock()
	last := c.holds.last[c.domain]
	c.holds.Unlock()
	if last == value {
		return true
	}
	content, err := c.storage.Load(ctx, c.key())
	var ours stored
	if err == nil {
		err = json.Unmarshal(content, &ours)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("loading the last challenge", zap.Error(err))
	}
	return ours.Value == value && ours.Set.Before(c.holds.begin)
}
