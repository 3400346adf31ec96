package wgtransport

import (
	"fmt"
	"net"
	"time"
)

// mostUnanswered is how many probes or repetitions in a row must go unanswered
// for a TCP connection to end. Lines lose some.
const mostUnanswered = 3

// watchLiveness makes conn end when home is gone, and returns what is to be used
// in its place. Probes find that out where a connection is idle: the first comes
// after the interval, and within another one all of them have gone unanswered.
// Where something has been written that is not acknowledged, as when a request
// is sent on a pooled connection, TCP does not probe but repeats itself, for a
// quarter of an hour while the client waits. There a watchedConn looks.
//
// TCP_USER_TIMEOUT is not for that. It also ends connections whose other end
// answers every time that it has no room, as home does while a program there
// pauses an upload.
//
// An interval of 0 or less leaves it all to TCP.
func watchLiveness(conn net.Conn, interval time.Duration) (net.Conn, error) {
	if c, ok := conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		config := net.KeepAliveConfig{
			Enable:   interval > 0,
			Idle:     interval,
			Interval: interval / mostUnanswered,
			Count:    mostUnanswered,
		}
		if err := c.SetKeepAliveConfig(config); err != nil {
			return nil, fmt.Errorf("setting keep-alive: %w", err)
		}
	}
	traffic := trafficOf(conn)
	if interval <= 0 || traffic == nil {
		return conn, nil
	}
	return newWatchedConn(conn, traffic, interval), nil
}

// traffic is what TCP knows of a connection.
type traffic struct {
	// waits says that something was written that home has not acknowledged, or
	// that it may have been.
	waits bool

	// asked changes when TCP repeats what it has sent, or asks whether there is
	// room again. Unless home is gone, it answers.
	asked uint64

	// heard changes with every segment that comes.
	heard uint64
}

// trafficOf returns what tells of conn's traffic as long as it is open, or nil
// if nothing does.
func trafficOf(conn net.Conn) func() (now traffic, open bool) {
	// A stack without sockets has a method of its own.
	if c, ok := conn.(interface {
		Traffic() (asked, heard uint64, err error)
	}); ok {
		return func() (traffic, bool) {
			asked, heard, err := c.Traffic()
			return traffic{waits: true, asked: asked, heard: heard}, err == nil
		}
	}
	return socketTraffic(conn)
}

// silence is since when, and to how many questions in a row, home has not
// answered. It tells a home that is gone from one whose program takes nothing,
// which TCP asks at ever longer intervals, up to two minutes: time in which
// nothing was asked does not count, nor does one answer that was lost.
type silence struct {
	last       traffic
	unanswered int       // looks at which there was a new question
	since      time.Time // the first of them
}

// see takes notice of what TCP knows at a time, and returns whether home has been
// silent for as long as the limit.
func (s *silence) see(now traffic, at time.Time, limit time.Duration) bool {
	switch {
	case now.heard != s.last.heard:
		*s = silence{last: now}
	case now.asked != s.last.asked:
		s.last = now
		if s.unanswered++; s.unanswered == 1 {
			s.since = at
		}
	}
	return s.unanswered >= mostUnanswered && at.Sub(s.since) >= limit
}
