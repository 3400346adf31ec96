package tests

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// harm is what a fault may do to the users of a home: keep new connections and
// requests from getting through, or, if cut is set, end connections as well.
type harm struct {
	home string
	cut  bool
}

// troubles are the faults that there are and have been, for whoever asks whether
// one is to blame. The zero value has none.
type troubles struct {
	mu            sync.Mutex
	active, begun map[harm]int
}

// begin says that a fault begins; it ends with the recovery from it.
func (t *troubles) begin(harms []harm) (end func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun == nil {
		t.active, t.begun = make(map[harm]int), make(map[harm]int)
	}
	for _, h := range harms {
		t.active[h]++
		t.begun[h]++
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, h := range harms {
			t.active[h]--
		}
	}
}

// troubled is a point in time, as far as a home's faults go.
type troubled struct{ away, cut int }

// now is the present. The faults that there are count as if they began after it.
func (t *troubles) now(home string) troubled {
	t.mu.Lock()
	defer t.mu.Unlock()
	away, cut := harm{home, false}, harm{home, true}
	return troubled{t.begun[away] - t.active[away], t.begun[cut] - t.active[cut]}
}

// since tells whether there were faults that kept new connections from a home, and
// such as cut connections.
func (t *troubles) since(home string, then troubled) (away, cut bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	cut = t.begun[harm{home, true}] > then.cut
	return cut || t.begun[harm{home, false}] > then.away, cut
}

const (
	// stallMax is how long a connection may stand still before that is a failure.
	// It is longer than TCP waits between two attempts after the longest outage,
	// and than keepalives need to find that the other end is not there any more.
	stallMax = 150 * time.Second

	// failuresMax is how many failures are shown.
	failuresMax = 20
)

// soakConn is a client's connection, which may not stand still for ever.
type soakConn struct {
	*net.TCPConn
	load  *workload
	home  string
	since troubled
	begun time.Time

	// secure is whether TLS tells a cut connection from one that has ended, and
	// bulk whether it is a transfer's.
	secure, bulk bool

	rate int64 // 0: any
}

// dial connects to a port of the relay. It returns a soakConn with an error, too,
// for judge.
func (l *workload) dial(ctx context.Context, home, port string) (*soakConn, error) {
	c := &soakConn{load: l, home: home, since: l.troubles.now(home), begun: time.Now(), secure: port == "443"}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := l.w.Client.Dial(ctx, "tcp", testnet.Endpoint+":"+port)
	if err != nil {
		return c, err
	}
	c.TCPConn = conn.(*net.TCPConn)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
	return c, nil
}

func (c *soakConn) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(stallMax))
	n, err := c.TCPConn.Read(p)
	slow(n, c.rate)
	return n, err
}

func (c *soakConn) Write(p []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(stallMax))
	n, err := c.TCPConn.Write(p)
	slow(n, c.rate)
	return n, err
}

// slow keeps to a rate.
func slow(n int, rate int64) {
	if rate > 0 && n > 0 {
		time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
	}
}

// Close closes the connection in order.
func (c *soakConn) Close() error {
	if c.TCPConn == nil {
		return nil
	}
	c.load.mu.Lock()
	delete(c.load.conns, c)
	c.load.mu.Unlock()
	return c.TCPConn.Close()
}

// drop ends the connection by RST, since FIN would be in order.
func (c *soakConn) drop() {
	if c.TCPConn != nil {
		c.SetLinger(0)
		c.Close()
	}
}

// mayBeCut tells whether there has been a fault that may have ended the connection.
func (c *soakConn) mayBeCut() bool {
	_, cut := c.load.troubles.since(c.home, c.since)
	return cut
}

// drop ends those connections that f says.
func (l *workload) drop(f func(*soakConn) bool) {
	l.mu.Lock()
	var those []*soakConn
	for c := range l.conns {
		if f(c) {
			those = append(those, c)
		}
	}
	l.mu.Unlock()
	for _, c := range those {
		c.drop()
	}
}

// judge decides about an error of a connection or an attempt at one. Before it got
// through to home, any fault may have been in the way, and then only one that cuts
// connections. Neither makes an end of one that looks like an orderly one.
func (l *workload) judge(c *soakConn, what string, through bool, err error) {
	if l.ctx.Err() != nil {
		return
	}
	away, cut := l.troubles.since(c.home, c.since)
	switch {
	case errors.Is(err, services.ErrDiffers),
		!c.secure && (errors.Is(err, services.ErrCut) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)),
		through && !cut, !away:
		l.fail("%s, begun %s before: %v", what, time.Since(c.begun).Round(time.Millisecond), err)
	case through:
		l.count(func(n *soakCounts) { n.cut++ })
	default:
		l.count(func(n *soakCounts) { n.refused++ })
	}
}
