package relay

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// resetCheck is how often a side is looked at while nothing is read from it.
const resetCheck = 250 * time.Millisecond

// resetWatch sees that the side which one half of a Stream reads from has been
// reset, or has timed out, while that half waits to write. Nobody would know
// before all was written that is on its way: a client that has gone would go on
// uploading through a slow line, for as long as what is buffered takes.
//
// A side that has sent FIN is not watched any more. What it said is all there,
// and is read to its end whatever happens to the connection afterwards: a
// program that has closed its socket is gone from its system a minute later,
// which then answers keepalive probes with RST.
type resetWatch struct {
	stream *Stream
	src    Conn
	from   side
	socket syscall.RawConn // nil if it is no kernel's

	// mu is taken within reads and writes of sockets, so it is never held while
	// one is closed: Close waits until these have returned.
	mu      sync.Mutex
	waiting bool
	looked  time.Time   // when the side was looked at last
	closed  bool        // it has sent FIN
	taken   bool        // its socket was asked for its error and told one
	err     error       // what has failed it before it did
	timer   *time.Timer // nil until there was a wait
}

// watch returns the watch of the half that reads from src, and is called by its
// goroutine.
func (s *Stream) watch(src Conn, from side) *resetWatch {
	socket, _ := spliceFrom(src)
	return &resetWatch{stream: s, src: src, from: from, socket: socket}
}

// begin says that the half waits to write, or is about to.
func (w *resetWatch) begin() {
	if w.socket == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting || w.closed {
		return
	}
	// While waits are short no check comes. A FIN has to be seen before a timeout
	// that follows it, which does not tell that there was one.
	if now := time.Now(); now.Sub(w.looked) >= resetCheck {
		w.looked = now
		if pollSide(w.socket)&(unix.POLLRDHUP|unix.POLLERR) == unix.POLLRDHUP {
			w.closed = true
			return
		}
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(resetCheck, w.check)
	} else {
		w.timer.Reset(resetCheck)
	}
	w.waiting = true
}

// end says that the half no longer waits.
func (w *resetWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting {
		w.waiting = false
		w.timer.Stop()
	}
}

// check ends the Stream if the side has failed.
func (w *resetWatch) check() {
	if err := w.look(); err != nil {
		w.stream.fail(w.from.reason(err), err)
	}
}

// look returns what has failed the side while the half waits. If that may yet
// happen, the next check comes.
func (w *resetWatch) look() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.waiting || w.closed || w.err != nil {
		return nil
	}
	w.looked = time.Now()
	events := pollSide(w.socket)
	var errno syscall.Errno
	if events&unix.POLLERR != 0 {
		errno = takeError(w.socket)
		w.taken = errno != 0
	}
	switch {
	case errno != 0 && errno != syscall.EPIPE:
		w.err = opError("read", w.src, os.NewSyscallError("poll", errno))
		return w.err
	case events&unix.POLLRDHUP != 0:
		// By FIN. The kernel calls it EPIPE when RST came after that.
		w.closed = true
	default:
		w.timer.Reset(resetCheck)
	}
	return nil
}

// failed returns what has failed the side, if that was seen.
func (w *resetWatch) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// torn returns an error if the connection is over both ways and its socket has no
// error to tell. A TCP socket comes to that when both sides have sent FIN, or when
// somebody else was told the error: which of them, only the caller knows.
func (w *resetWatch) torn() error {
	if w.socket == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.taken || pollSide(w.socket)&(unix.POLLHUP|unix.POLLERR) != unix.POLLHUP {
		return nil
	}
	return opError("read", w.src, os.NewSyscallError("poll", syscall.ECONNRESET))
}

// pollSide returns POLLRDHUP if nothing more comes from a side, POLLHUP if nothing
// can be sent to it either, and POLLERR if its socket has an error to tell, which
// ends it both ways.
func pollSide(socket syscall.RawConn) (events int16) {
	_ = socket.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(poll, 0); err == nil && n > 0 {
			events = poll[0].Revents
		}
	})
	return events
}

// takeError returns the error that a socket has to tell, or 0, and makes it
// forget that.
func takeError(socket syscall.RawConn) (errno syscall.Errno) {
	_ = socket.Control(func(fd uintptr) {
		if number, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil {
			errno = syscall.Errno(number)
		}
	})
	return errno
}
