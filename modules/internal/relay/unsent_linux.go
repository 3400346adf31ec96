package relay

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// unsentTime is how long what waits in a socket takes to be sent. The
	// kernel asks for more when half of it is left, and on a busy host it takes
	// us a while to be scheduled. BBR at 433 Mbit/s, 31 ms and a loss of 0.1 %,
	// medians in Mbit/s with a constant: 20 ms 286, 40 ms 322, 60 ms 315, 80 ms
	// 325, without a bound 322.
	unsentTime = 60 * time.Millisecond

	// unsentLeast is for slow connections. The kernel takes 64 KiB at once.
	unsentLeast = 64 << 10

	// unsentMost is 60 ms of 1.1 Gbit/s.
	unsentMost = 8 << 20

	// unsentBegin is little, since a slow connection comes to be measured only
	// when it has sent half of it: 1,000 slow uploads with 2 MiB each went on for
	// half a minute when their clients had reset them.
	unsentBegin = 256 << 10

	// unsentRise and unsentFall are how long a rate is measured before the bound
	// grows and shrinks. In 25 ms a connection in slow start doubles its rate
	// at most once.
	unsentRise = 25 * time.Millisecond
	unsentFall = 100 * time.Millisecond
)

// unsentBound keeps what a socket takes and TCP has not sent yet
// (TCP_NOTSENT_LOWAT) in proportion to its rate. What has been sent is bounded
// by the path; what waits on top of it delays all that the sender does next,
// and is lost when the relay fails. A constant is too much for a slow line and
// too little for a fast one: 1 MiB is 300 ms of a home's uplink of 27 Mbit/s,
// and 20 ms of its downlink of 433, which with losses to repair is a tenth of
// its throughput.
type unsentBound struct {
	bytes int

	// begin is when the socket was full first, the zero time if it has not been
	// since there last was nothing to write, and taken how much it has taken
	// from then on.
	begin time.Time
	taken int
}

// start sets the bound that a connection begins with.
func (u *unsentBound) start(socket syscall.RawConn) {
	_ = socket.Control(func(fd uintptr) { u.set(fd, unsentBegin) })
}

func (u *unsentBound) set(fd uintptr, bytes int) {
	u.bytes = bytes
	// A socket that is not TCP's has no such option, nor needs it.
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
}

// full says that the socket takes no more at present. From one such moment to
// another it sent what it took in between, which is its rate.
func (u *unsentBound) full(fd uintptr, now time.Time) {
	if !u.begin.IsZero() {
		elapsed := now.Sub(u.begin)
		if elapsed < unsentRise {
			return
		}
		bytes := nextUnsent(u.bytes, u.taken, elapsed)
		if bytes <= u.bytes && elapsed < unsentFall {
			return
		}
		if bytes != u.bytes {
			u.set(fd, bytes)
		}
	}
	u.begin, u.taken = now, 0
}

// starved says that there is nothing to write: what the socket takes now is the
// other side's rate.
func (u *unsentBound) starved() { u.begin = time.Time{} }

// nextUnsent is the bound of a socket that sent so many bytes. It falls by no
// more than half: a rate of nothing may be a loss that is being repaired.
func nextUnsent(bound, sent int, elapsed time.Duration) int {
	wanted := float64(sent) * float64(unsentTime) / float64(elapsed)
	return int(min(max(wanted, float64(bound)/2, unsentLeast), unsentMost))
}
