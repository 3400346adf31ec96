// Package backoff lets what serves everybody go on after an error: a lack of
// descriptors or memory passes.
package backoff

import (
	"net"
	"time"

	"go.uber.org/zap"
)

const (
	// firstPause and longestPause bound how long a loop waits after an error,
	// as in net/http: what passes at once delays no client, and what does not
	// costs no CPU.
	firstPause   = 5 * time.Millisecond
	longestPause = time.Second

	// errorInterval is how often a loop writes a line about its errors.
	errorInterval = 10 * time.Second
)

// Loop is what a loop knows of its errors. It is for one goroutine at a time.
type Loop struct {
	Message string
	Address net.Addr
	Done    <-chan struct{} // ends the loop

	// Logger says where lines go to. It is asked for each, since a loop may
	// outlive the configuration that began it, and with it that one's logger.
	Logger func() *zap.Logger

	pause      time.Duration // the last one, 0 after a success
	nextLine   time.Time
	suppressed int // lines since the last that was written
}

// Failed waits after an error, and says whether the loop is to go on.
func (l *Loop) Failed(err error) bool {
	l.pause = min(max(2*l.pause, firstPause), longestPause)
	l.log(err)
	timer := time.NewTimer(l.pause)
	defer timer.Stop()
	select {
	case <-l.Done:
		return false
	case <-timer.C:
		return true
	}
}

// Succeeded makes the next pause a short one.
func (l *Loop) Succeeded() { l.pause = 0 }

func (l *Loop) log(err error) {
	now := time.Now()
	if now.Before(l.nextLine) {
		l.suppressed++
		return
	}
	l.Logger().Error(l.Message,
		zap.Stringer("address", l.Address),
		zap.Duration("pause", l.pause),
		zap.Int("suppressed", l.suppressed),
		zap.Error(err))
	l.suppressed, l.nextLine = 0, now.Add(errorInterval)
}
