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
type resetWatch struct {
	stream *Stream
	src    Conn
	from   side
	socket syscall.RawConn // nil if it is no kernel's

	// mu is taken within reads and writes of sockets, so it is never held while
	// one is closed: Close waits until these have returned.
	mu      sync.Mutex
	waiting bool
	timer   *time.Timer // nil until there was a wait
	err     error       // what has failed the side
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
	switch {
	case w.waiting:
		return
	case w.timer == nil:
		w.timer = time.AfterFunc(resetCheck, w.check)
	default:
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

// look returns what has failed the side while the half waits, or has itself
// called again.
func (w *resetWatch) look() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.waiting || w.err != nil {
		return nil
	}
	if errno := socketError(w.socket); errno != 0 {
		w.err = opError("read", w.src, os.NewSyscallError("poll", errno))
		return w.err
	}
	w.timer.Reset(resetCheck)
	return nil
}

// failed returns what has failed the side, if that was seen.
func (w *resetWatch) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// socketError returns what has failed a connection, or 0. A FIN is no failure.
func socketError(socket syscall.RawConn) (failed syscall.Errno) {
	_ = socket.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		if n, err := unix.Poll(poll, 0); err != nil || n == 0 || poll[0].Revents&unix.POLLERR == 0 {
			return
		}
		if number, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil {
			failed = syscall.Errno(number)
		}
	})
	return failed
}
