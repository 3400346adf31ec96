package relay

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// stuck is a side that takes as long to close as the test wants.
type stuck struct {
	Conn
	once    sync.Once
	closing chan struct{} // closed when it is being closed
	release chan struct{} // closed when it may be
}

func (s *stuck) Close() error {
	s.once.Do(func() { close(s.closing) })
	<-s.release
	return s.Conn.Close()
}

// stuckStream starts a Stream in Streams whose client cannot be closed before
// the test ends.
func stuckStream(t *testing.T) (stream *Stream, closing chan struct{}) {
	t.Helper()
	_, down := pair(t)
	up, _ := pair(t)
	client := &stuck{Conn: down, closing: make(chan struct{}), release: make(chan struct{})}
	stream = NewStream(client, up, time.Hour)
	result := make(chan Result, 1)
	go func() { result <- Streams.Run(stream) }()
	t.Cleanup(func() {
		close(client.release)
		stream.Abort(Shutdown)
		wait(t, result)
	})
	settles(t, "streams not running", func() int { return 1 - Streams.Len() }, 0)
	return stream, client.closing
}

// returns fails the test if call does not return.
func returns(t *testing.T, what string, call func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		call()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not return", what)
	}
}

// A side that takes long to close holds up whoever closes it, and nobody else.
func TestStreamStuckInClose(t *testing.T) {
	stream, closing := stuckStream(t)
	go stream.Abort(Shutdown)
	<-closing
	returns(t, "Abort", func() { stream.Abort(Shutdown) })
	returns(t, "checkIdle", stream.checkIdle)
}

// End is over when its context is, whatever a connection takes to be closed.
func TestEndIsBounded(t *testing.T) {
	_, closing := stuckStream(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-closing
		cancel()
	}()
	returns(t, "End", func() {
		if err := End(ctx, Shutdown); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want that the context is done", err)
		}
	})
}
