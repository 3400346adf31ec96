package relay

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Stream relays one TCP connection. What one side sends goes to the other in
// order; FIN goes through as FIN and by half, everything else ends in RST on
// both sides, so that a cut transfer never looks like a complete one.
type Stream struct {
	client, upstream Conn
	idle             time.Duration

	sent, received, spliced atomic.Uint64

	// touched is when the last byte moved, in nanoseconds since started. It
	// is only kept when there is an idle timeout.
	touched atomic.Int64
	started time.Time
	timer   *time.Timer

	// mu is not held while a connection is closed, which waits for the reads
	// and writes in progress.
	mu     sync.Mutex
	reason Reason // set once
	err    error
	over   bool // no half may touch the connections' fate any more
	whole  bool // a side was closed as a whole, for want of a half-close

	failing   chan struct{} // closed when the Stream fails
	resetting sync.Once
}

// tornWait is how long a half that was not told why its side has ended waits for
// the other one to say it.
const tornWait = time.Second

// NewStream prepares to relay between client and upstream, which it owns from
// now on. It ends after idle without a byte either way; 0 means never.
func NewStream(client, upstream Conn, idle time.Duration) *Stream {
	return &Stream{client: client, upstream: upstream, idle: idle, started: time.Now(), failing: make(chan struct{})}
}

// Run relays until both directions have ended and both sides are closed.
// Nothing of the Stream runs any more when it returns.
func (s *Stream) Run() Result {
	// If this process is killed, the kernel closes its sockets. The client is to
	// get RST for that as well.
	_ = s.client.SetLinger(0)
	if s.idle > 0 {
		// The lock is for the timer's first run, which may come before
		// AfterFunc has returned.
		s.mu.Lock()
		s.timer = time.AfterFunc(s.idle, s.checkIdle)
		s.mu.Unlock()
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		s.half(s.client, s.upstream, upstreamSide, clientSide, &s.received)
	}()
	s.half(s.upstream, s.client, clientSide, upstreamSide, &s.sent)
	<-done

	s.mu.Lock()
	failed := s.over
	s.over = true
	if s.timer != nil {
		s.timer.Stop()
	}
	result := Result{Reason: s.reason, Err: s.err}
	s.mu.Unlock()

	if failed {
		// Whoever has failed the Stream may not have come to it yet.
		s.reset()
	} else {
		_ = s.client.SetLinger(-1)
	}
	// Both have had their FIN or their RST by now.
	_ = s.client.Close()
	_ = s.upstream.Close()

	result.Sent, result.Received = s.Counts()
	result.Spliced = s.spliced.Load()
	result.Duration = time.Since(s.started)
	return result
}

// Counts returns the bytes relayed so far, from the client and to it.
func (s *Stream) Counts() (sent, received uint64) { return s.sent.Load(), s.received.Load() }

// Abort resets both sides. Run returns soon afterwards with this reason,
// unless there was another one before.
func (s *Stream) Abort(reason Reason) { s.fail(reason, nil) }

// half copies from src to dst until src ends, and passes the end on.
func (s *Stream) half(dst, src Conn, from, to side, count *atomic.Uint64) {
	watch := s.watch(src, from)
	readErr, writeErr := s.move(dst, src, watch, count)
	if err := watch.failed(); err != nil {
		// A socket tells an error once. What was read since looked like an
		// orderly end.
		readErr, writeErr = err, nil
	} else if readErr == nil && writeErr == nil {
		readErr = s.torn(watch)
	}
	switch {
	case writeErr != nil:
		s.fail(to.reason(writeErr), writeErr)
	case readErr != nil:
		s.fail(from.reason(readErr), readErr)
	default:
		s.finish(dst, from, to)
	}
}

// torn returns nil if what looks like the orderly end of a side is one. It is none
// if the other half, which writes to that side, was told an error: a socket tells
// it once, and whoever reads then sees an end of file.
func (s *Stream) torn(watch *resetWatch) error {
	err := watch.torn()
	if err == nil || s.ending() { // the other half has sent FIN, and was told nothing
		return nil
	}
	select {
	case <-s.failing:
	case <-time.After(tornWait):
	}
	return err
}

// ending reports whether a half has ended in order, and nothing has failed.
func (s *Stream) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason != "" && !s.over
}

// pump is move for connections that cannot be spliced.
func (s *Stream) pump(dst, src Conn, watch *resetWatch, count *atomic.Uint64) (readErr, writeErr error) {
	small := smallBuffers.Get()
	defer smallBuffers.Put(small)
	var large *[]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()

	for {
		buf := *small
		if large != nil {
			buf = *large
		}
		n, err := src.Read(buf)
		if n > 0 {
			s.touch()
			if err := s.forward(dst, buf[:n], watch, count); err != nil {
				return nil, err
			}
		}
		if err != nil {
			return orderly(err), nil
		}
		switch {
		case large == nil && n == smallBuffer:
			large = largeBuffers.Get()
		case large != nil && n < smallBuffer:
			largeBuffers.Put(large)
			large = nil
		}
	}
}

// forward writes what was read.
func (s *Stream) forward(dst Conn, p []byte, watch *resetWatch, count *atomic.Uint64) error {
	watch.begin()
	n, err := dst.Write(p)
	watch.end()
	if n > 0 {
		count.Add(uint64(n))
		s.touch()
	}
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// orderly makes the end of a connection no error.
func orderly(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// finish passes an orderly end on to dst.
func (s *Stream) finish(dst Conn, from, to side) {
	s.mu.Lock()
	over := s.over
	if s.reason == "" {
		s.reason = from.closed
	}
	s.mu.Unlock()
	if over {
		// Nor may this FIN get ahead of the RST.
		return
	}

	err := dst.CloseWrite()
	if errors.Is(err, syscall.ENOTCONN) {
		// It is gone. Whether that was its orderly end is for the half to say
		// that reads from it, which may have much of it left to write.
		return
	}
	if errors.Is(err, errors.ErrUnsupported) {
		s.mu.Lock()
		s.whole = true
		s.mu.Unlock()
		_ = dst.SetLinger(-1)
		err = dst.Close()
	}
	if err != nil {
		s.fail(to.reason(err), err)
	}
}

// fail ends the Stream with RST on both sides.
func (s *Stream) fail(reason Reason, err error) {
	if s.note(reason, err) {
		s.reset()
	}
}

// note says why the Stream fails, and reports whether it does: only the first
// failure counts.
func (s *Stream) note(reason Reason, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	if s.whole && ended(err) {
		// The other half read from the side that finish has closed.
		return false
	}
	s.over = true
	// An end that began orderly and then failed has failed: the sides must
	// not both believe that all went well.
	s.reason, s.err = reason, err
	close(s.failing)
	return true
}

// reset closes both sides with RST, and returns when that is done, whoever does
// it.
func (s *Stream) reset() {
	s.resetting.Do(func() {
		for _, c := range []Conn{s.client, s.upstream} {
			// Where this is impossible the connection has ended already.
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	})
}

func (s *Stream) touch() {
	if s.idle > 0 {
		s.touched.Store(int64(time.Since(s.started)))
	}
}

// checkIdle runs when the idle timeout may be over.
func (s *Stream) checkIdle() {
	left := s.idle - (time.Since(s.started) - time.Duration(s.touched.Load()))
	if left <= 0 {
		s.fail(IdleTimeout, nil)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.timer.Reset(left)
	}
}
