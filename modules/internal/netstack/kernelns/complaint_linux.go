package kernelns

import (
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// How often the log hears of what keeps failing: once a minute at first, and once an
// hour when nobody has done something about it so far.
const (
	complainSoon  = time.Minute
	complainLater = time.Hour
	complainLong  = 10 * time.Minute // until when it is at first
)

// complaint is what fails, and is tried again until it does not.
type complaint struct {
	attempts    int
	first, last time.Time // of those that the log has heard of
}

// level takes note of a failure, and is the level at which the log hears of it: the
// usual one, or that of details.
func (c *complaint) level(now time.Time, usual zapcore.Level) zapcore.Level {
	c.attempts++
	pause := complainSoon
	if now.Sub(c.first) >= complainLong {
		pause = complainLater
	}
	if c.attempts > 1 && now.Sub(c.last) < pause {
		return zap.DebugLevel
	}
	if c.attempts == 1 {
		c.first = now
	}
	c.last = now
	return usual
}
