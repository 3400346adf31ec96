package gvisor

import (
	"sync"
	"time"
)

// deadline is a point in time that can be moved while others wait for it. The
// zero value is never reached.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	// passed is closed when the deadline is reached. A waiter that holds an
	// old one was there when the old deadline passed.
	passed chan struct{}
}

// done returns a channel that is closed when the deadline is reached, even if
// it is set only later.
func (d *deadline) done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.passed == nil {
		d.passed = make(chan struct{})
	}
	return d.passed
}

// set moves the deadline; the zero time means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fired := d.timer != nil && !d.timer.Stop()
	d.timer = nil
	if d.passed == nil {
		d.passed = make(chan struct{})
	}
	select {
	case <-d.passed:
		fired = true
	default:
	}
	if fired {
		// The old channel is closed, or its timer is about to close it.
		d.passed = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	passed := d.passed
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(passed) })
		return
	}
	close(passed)
}
