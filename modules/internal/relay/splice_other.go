//go:build !linux

package relay

import "sync/atomic"

// move copies until src ends, which is no error, or one of them fails.
func (s *Stream) move(dst, src Conn, count *atomic.Uint64) (readErr, writeErr error) {
	return s.pump(dst, src, count)
}
