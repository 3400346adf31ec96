package relay

import (
	"net"
	"testing"
)

// path is a way that bytes can take through a Stream.
type path struct {
	name string

	// set changes what this process relays with, until the test ends.
	set func(t testing.TB)

	// conn is what the Stream gets for a socket.
	conn func(*net.TCPConn) Conn

	// spliced says that bytes are spliced, copied that none are.
	spliced, copied bool
}

// opaque hides that a connection is a socket.
type opaque struct{ Conn }

func asItIs(c *net.TCPConn) Conn { return c }

func hidden(c *net.TCPConn) Conn { return opaque{c} }

// overPaths runs a test over every path of this system.
func overPaths(t *testing.T, test func(t *testing.T, p path)) {
	for _, p := range append(paths, path{name: "opaque", set: func(testing.TB) {}, conn: hidden, copied: true}) {
		t.Run(p.name, func(t *testing.T) {
			p.set(t)
			test(t, p)
		})
	}
}

// took checks that a Stream went this path.
func (p path) took(t testing.TB, r Result) {
	t.Helper()
	if p.copied && r.Spliced != 0 {
		t.Errorf("%d bytes were spliced", r.Spliced)
	}
	// A byte that comes just before the wait is read: all that is certain is
	// that some of many are spliced.
	if all := r.Sent + r.Received; p.spliced && all > 1<<20 && r.Spliced == 0 {
		t.Errorf("none of %d bytes were spliced", all)
	}
}
