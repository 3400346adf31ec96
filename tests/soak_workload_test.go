package tests

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
)

// workload uses everything that a soak's relay serves, and judges what it gets.
type workload struct {
	troubles troubles
	t        *testing.T
	w        *world
	homes    []soakHome
	sizes    [2]int64 // of transfers
	rate     int64    // of each, in bytes per second
	pages    map[string][]byte

	// ctx ends everything, and sending only that new transfers and requests begin.
	ctx, sending     context.Context
	cancel, stopSend context.CancelFunc
	// starters begin transfers, which may outlive them.
	running, starters, transfers sync.WaitGroup
	paused                       atomic.Bool // what lasts is idle

	lasting []*lasting
	flows   []*soakFlow

	mu       sync.Mutex
	conns    map[*soakConn]bool
	overtake chan struct{} // closed and replaced by leaveCut
	failures int
	fault    string // the last one
	soakCounts
}

// soakCounts are what a workload has seen.
type soakCounts struct {
	transfers, bytes, cut, refused   int64
	requests, badRequests            int64
	datagrams, answers, lines, again int64
	homeCut                          int64 // see served
}

func newWorkload(t *testing.T, w *world, homes []soakHome) *workload {
	l := &workload{t: t, w: w, homes: homes, conns: make(map[*soakConn]bool), overtake: make(chan struct{}), pages: make(map[string][]byte)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.sending, l.stopSend = context.WithCancel(l.ctx)
	return l
}

// fail is an error of the test.
func (l *workload) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failures++; l.failures <= failuresMax {
		l.t.Errorf("%s, last fault %q: %s", time.Now().Format("15:04:05.000"), l.fault, fmt.Sprintf(format, args...))
	}
}

// useless tells whether there have been so many failures that more say nothing.
func (l *workload) useless() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failures > failuresMax
}

func (l *workload) count(f func(*soakCounts)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.soakCounts)
}

// rest is a pause between two uses. It tells whether there is to be another one.
func (l *workload) rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// open opens what lasts, with so many clients of UDP for each home.
func (l *workload) open(flows int) {
	for _, home := range l.homes {
		l.keep("the session with "+home.name, home, home.echo, func(conn *soakConn) (io.ReadWriter, error) { return conn, nil })
		l.keep("the WebSocket to "+home.name, home, "443", func(conn *soakConn) (io.ReadWriter, error) {
			secure := tls.Client(conn, &tls.Config{ServerName: home.site, RootCAs: l.w.public.Pool()})
			return services.DialWebSocket(secure, "https://"+home.site+"/ws")
		})
		for range flows {
			l.flow(home)
		}
	}
}

// start begins transfers, so many at a time for each home, and requests.
func (l *workload) start(transfers int, random *rand.Rand) {
	for _, home := range l.homes {
		for range transfers {
			own := rand.New(rand.NewPCG(random.Uint64(), 0))
			l.starters.Go(func() { l.transfer(home, own) })
		}
		l.running.Go(func() { l.visit(home) })
	}
}

// lasting is a connection that is there for the whole soak but for what cuts it.
type lasting struct {
	name     string
	answered atomic.Int64 // when the last line was said that was answered, UnixNano
}

// keep keeps and uses such a connection. open makes of it what it is spoken over.
func (l *workload) keep(name string, home soakHome, port string, open func(*soakConn) (io.ReadWriter, error)) {
	s := &lasting{name: name}
	l.lasting = append(l.lasting, s)
	once := func() {
		conn, err := l.dial(l.ctx, home.name, port)
		defer conn.drop()
		var over io.ReadWriter
		if err == nil {
			over, err = open(conn)
		}
		through := false
		if err == nil {
			in := bufio.NewReader(over)
			for n := 0; l.ctx.Err() == nil && err == nil; n++ {
				said := time.Now()
				if err = exchangeLine(over, in, fmt.Sprintf("%s, line %d", name, n)); err == nil {
					through = true
					s.answered.Store(said.UnixNano())
					l.count(func(n *soakCounts) { n.lines++ })
					for l.rest(l.ctx, 100*time.Millisecond) && l.paused.Load() {
					}
				}
			}
		}
		l.judge(conn, name, through, err)
	}
	l.running.Go(func() {
		for once(); l.rest(l.ctx, 100*time.Millisecond); once() {
			l.count(func(n *soakCounts) { n.again++ })
		}
	})
}

// exchangeLine says a line and expects it back.
func exchangeLine(out io.Writer, in *bufio.Reader, line string) error {
	if _, err := io.WriteString(out, line+"\n"); err != nil {
		return err
	}
	got, err := in.ReadString('\n')
	if err == nil && got != line+"\n" {
		err = fmt.Errorf("%w: for %q came %q", services.ErrDiffers, line, got)
	}
	return err
}

// leaveCut lets new transfers begin beside those that do not know yet that they
// have been cut.
func (l *workload) leaveCut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.overtake)
	l.overtake = make(chan struct{})
}

// finish lets the transfers come to their end, and lets go of those that have been
// cut.
func (l *workload) finish() {
	l.stopSend()
	l.leaveCut()
	done := make(chan struct{})
	go func() {
		l.starters.Wait()
		l.transfers.Wait()
		close(done)
	}()
	for {
		l.drop(func(c *soakConn) bool { return c.bulk && c.mayBeCut() })
		select {
		case <-done:
			return
		case <-time.After(time.Second):
		}
	}
}

// end ends everything.
func (l *workload) end() {
	l.cancel()
	l.drop(func(*soakConn) bool { return true })
	l.running.Wait()
	l.starters.Wait()
	l.transfers.Wait()
}

// String sums up what there was.
func (n *soakCounts) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%d transfers finished (%d MiB), %d connections cut and %d that did not get through; ", n.transfers, n.bytes>>20, n.cut, n.refused)
	fmt.Fprintf(&s, "%d transfers that the proxy at home has ended as if in order; ", n.homeCut)
	fmt.Fprintf(&s, "%d requests answered and %d not; %d of %d datagrams answered; %d lines said in sessions and WebSockets, begun again %d times", n.requests, n.badRequests, n.answers, n.datagrams, n.lines, n.again)
	return s.String()
}
