//go:build !linux

package relay

import "sync/atomic"

// move copies until src ends, which is no error, or one of them fails.
func (s *Stream) move(dst, src Conn, watch *resetWatch, count *atomic.Uint64) (readErr, writeErr error) {
	return s.pump(dst, src, watch, count)
}

// resetWatch does nothing here: a side that was reset is noticed when it is read
// from.
type resetWatch struct{}

func (*Stream) watch(Conn, side) *resetWatch { return nil }

func (*resetWatch) begin() {}

func (*resetWatch) end() {}

func (*resetWatch) failed() error { return nil }

func (*resetWatch) torn() error { return nil }
