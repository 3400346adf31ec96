package wireguard

import (
	"net"
	"time"

	"github.com/caddyserver/caddy/v2"
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

// backOff lets a loop that serves everybody go on after an error: a lack of
// descriptors or memory passes.
type backOff struct {
	message string
	address net.Addr
	done    <-chan struct{} // ends the loop

	// logger is where lines go to; if nil, to Caddy's log. The loop outlives
	// the configuration that began it, and with it that one's logger.
	logger *zap.Logger

	pause      time.Duration // the last one, 0 after a success
	nextLine   time.Time
	suppressed int // lines since the last that was written
}

// failed waits after an error, and says whether the loop is to go on.
func (b *backOff) failed(err error) bool {
	b.pause = min(max(2*b.pause, firstPause), longestPause)
	b.log(err)
	timer := time.NewTimer(b.pause)
	defer timer.Stop()
	select {
	case <-b.done:
		return false
	case <-timer.C:
		return true
	}
}

// succeeded makes the next pause a short one.
func (b *backOff) succeeded() { b.pause = 0 }

func (b *backOff) log(err error) {
	now := time.Now()
	if now.Before(b.nextLine) {
		b.suppressed++
		return
	}
	logger := b.logger
	if logger == nil {
		logger = caddy.Log().Named("wireguard")
	}
	logger.Error(b.message,
		zap.Stringer("address", b.address),
		zap.Duration("pause", b.pause),
		zap.Int("suppressed", b.suppressed),
		zap.Error(err))
	b.suppressed, b.nextLine = 0, now.Add(errorInterval)
}
