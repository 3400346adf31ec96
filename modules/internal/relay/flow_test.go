package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// datagrams is a client's side that keeps what it gets.
type datagrams chan string

func (d datagrams) Write(b []byte) (int, error) {
	d <- string(b)
	return len(b), nil
}

func (d datagrams) want(t testing.TB, want string) {
	t.Helper()
	select {
	case got := <-d:
		if got != want {
			t.Fatalf("received %.40q (%d bytes), want %.40q (%d bytes)", got, len(got), want, len(want))
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("received nothing, want %.40q", want)
	}
}

// home is a UDP socket that plays the upstream.
type home struct {
	*net.UDPConn
	t testing.TB
}

func newHome(t testing.TB) *home {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &home{c, t}
}

func (h *home) want(want string) (from *net.UDPAddr) {
	h.t.Helper()
	got, from, err := h.receive()
	if err != nil || got != want {
		h.t.Fatalf("home received %.40q (%d bytes), %v; want %.40q (%d bytes)", got, len(got), err, want, len(want))
	}
	return from
}

func (h *home) receive() (text string, from *net.UDPAddr, err error) {
	buf := make([]byte, MaxDatagram)
	_ = h.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := h.ReadFromUDP(buf)
	return string(buf[:n]), from, err
}

func (h *home) send(to *net.UDPAddr, text string) {
	h.t.Helper()
	if _, err := h.WriteToUDP([]byte(text), to); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) dial(context.Context) (net.Conn, any, error) {
	c, err := net.DialUDP("udp", nil, h.LocalAddr().(*net.UDPAddr))
	return c, "by dial", err
}

// flowTest is a table, options for it, and the results of its flows.
func flowTest(t testing.TB) (*FlowTable, FlowOptions, *home, chan FlowResult) {
	t.Helper()
	h := newHome(t)
	ended := make(chan FlowResult, 100)
	table := new(FlowTable)
	t.Cleanup(func() {
		table.Close(Shutdown)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := table.Wait(ctx); err != nil {
			t.Error("flows are left")
		}
		if table.Len() != 0 {
			t.Errorf("%d flows are left in the table", table.Len())
		}
	})
	return table, FlowOptions{
		Dial:        h.dial,
		IdleTimeout: time.Minute,
		Ended:       func(r FlowResult) { ended <- r },
		Owner:       "test",
	}, h, ended
}

func attach(t testing.TB, table *FlowTable, client string, w io.Writer, options FlowOptions) (*Flow, bool) {
	t.Helper()
	flow, adopted, err := table.Attach(FlowKey{"udp/[::]:1", client, "home:1"}, w, options)
	if err != nil {
		t.Fatal(err)
	}
	return flow, adopted
}

func result(t testing.TB, ended chan FlowResult) FlowResult {
	t.Helper()
	select {
	case r := <-ended:
		return r
	case <-time.After(5 * time.Second):
		t.Fatal("the flow does not end")
		return FlowResult{}
	}
}

func TestFlowDatagramsKeepTheirBounds(t *testing.T) {
	table, options, home, ended := flowTest(t)
	client := make(datagrams, 10)
	flow, adopted := attach(t, table, "a", client, options)
	if adopted {
		t.Error("adopted a flow from nowhere")
	}
	sizes := []int{1, 0, 1200, 1, 9000, 65507, 3}
	total := 0
	for _, size := range sizes {
		text := strings.Repeat("u", size)
		flow.Send([]byte(text))
		from := home.want(text)
		text = strings.Repeat("d", size)
		home.send(from, text)
		client.want(t, text)
		total += size
	}
	table.Close(Shutdown)
	r := result(t, ended)
	if r.Sent != uint64(total) || r.Received != uint64(total) || r.SentDatagrams != 7 || r.ReceivedDatagrams != 7 || r.Dropped != 0 {
		t.Errorf("counted %+v", r)
	}
	if r.Reason != Shutdown || flow.Reason() != Shutdown || r.Dialed != "by dial" || r.Key.Client != "a" {
		t.Errorf("%+v", r)
	}
}

func TestFlowIsAdopted(t *testing.T) {
	table, options, home, ended := flowTest(t)
	before, after := make(datagrams, 10), make(datagrams, 10)
	old, _ := attach(t, table, "a", before, options)
	old.Send([]byte("one"))
	port := home.want("one")
	home.send(port, "to the first")
	before.want(t, "to the first")

	options.Owner = "heir"
	heir, adopted := attach(t, table, "a", after, options)
	if !adopted || heir != old {
		t.Fatal("the flow was not adopted")
	}
	heir.Send([]byte("two"))
	if got := home.want("two"); got.String() != port.String() {
		t.Errorf("home sees %v, before %v: the socket was not kept", got, port)
	}
	home.send(port, "to the second")
	after.want(t, "to the second")

	// Whoever is late still gets datagrams through.
	old.Send([]byte("three"))
	home.want("three")
	if len(before) != 0 || table.Len() != 1 {
		t.Error("the first client still gets datagrams")
	}

	// Its first owner's end is no longer its own.
	options.IdleTimeout = 50 * time.Millisecond
	attach(t, table, "a", after, options)
	table.Orphan("test")
	if r := result(t, ended); r.Reason != IdleTimeout {
		t.Errorf("ended by %q", r.Reason)
	}
}

func TestFlowIdleTimeout(t *testing.T) {
	const idle = 150 * time.Millisecond
	for _, tt := range []struct {
		name string
		step func(flow *Flow, home *home, port *net.UDPAddr, client datagrams) error
	}{
		{"kept by the client", func(flow *Flow, home *home, _ *net.UDPAddr, _ datagrams) error {
			flow.Send([]byte("u"))
			text, _, err := home.receive()
			if err == nil && text != "u" {
				home.t.Fatalf("home received %q", text)
			}
			return err
		}},
		{"kept by the upstream", func(_ *Flow, home *home, port *net.UDPAddr, client datagrams) error {
			home.send(port, "d")
			select {
			case <-client:
				return nil
			case <-time.After(5 * time.Second):
				return errors.New("the client received nothing")
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			untilInUse(t, func() (wasInUse bool) {
				table, options, home, ended := flowTest(t)
				options.IdleTimeout = idle
				client := make(datagrams, 10)
				// last is when the last exchange that came through began.
				last := time.Now()
				flow, _ := attach(t, table, "a", client, options)
				quiet := func(r FlowResult) time.Duration { return flow.started.Add(r.Duration).Sub(last) }
				flow.Send([]byte("first"))
				text, port, err := home.receive()
				if err == nil && text != "first" {
					t.Fatalf("home received %q", text)
				}
				for start := last; err == nil && time.Since(start) < 3*idle; time.Sleep(idle / 10) {
					began := time.Now()
					if err = tt.step(flow, home, port, client); err == nil {
						last = began
					}
				}
				r := result(t, ended)
				if r.Reason != IdleTimeout || r.Err != nil {
					t.Errorf("%+v", r)
				}
				if quiet(r) < idle {
					t.Fatalf("ended after %v of silence", quiet(r))
				}
				<-flow.Context().Done()
				return err == nil
			})
		})
	}
}

// Datagrams wait for the dial, but not without bound, and not the caller.
func TestFlowWhileDialing(t *testing.T) {
	table, options, home, ended := flowTest(t)
	dial, release := options.Dial, make(chan struct{})
	options.Dial = func(ctx context.Context) (net.Conn, any, error) {
		<-release
		return dial(ctx)
	}
	flow, _ := attach(t, table, "a", make(datagrams, 1), options)
	for i := range maxQueued + 7 {
		flow.Send(fmt.Appendf(nil, "%d", i))
	}
	close(release)
	for i := range maxQueued {
		home.want(fmt.Sprint(i))
	}
	flow.Send([]byte("later"))
	home.want("later")
	table.Close(Shutdown)
	if r := result(t, ended); r.Dropped != 7 || r.SentDatagrams != maxQueued+1 {
		t.Errorf("sent %d, dropped %d", r.SentDatagrams, r.Dropped)
	}
}

func TestFlowQueuedBytes(t *testing.T) {
	table, options, _, ended := flowTest(t)
	options.Dial = func(ctx context.Context) (net.Conn, any, error) {
		<-ctx.Done()
		return nil, nil, ctx.Err()
	}
	flow, _ := attach(t, table, "a", make(datagrams, 1), options)
	for range 5 {
		flow.Send(make([]byte, 30_000))
	}
	flow.mu.Lock()
	if flow.queuedBytes > maxQueuedBytes || len(flow.queue) != 2 {
		t.Errorf("%d bytes in %d datagrams wait", flow.queuedBytes, len(flow.queue))
	}
	flow.mu.Unlock()
	table.Close(Shutdown)
	if r := result(t, ended); r.Dropped != 5 || r.Reason != Shutdown {
		t.Errorf("%+v", r)
	}
}

// stuckConn is an upstream whose tunnel takes no more.
type stuckConn struct {
	net.Conn
	closed context.Context
	close  context.CancelFunc
}

func (c stuckConn) Write([]byte) (int, error) {
	<-c.closed.Done()
	return 0, net.ErrClosed
}

func (c stuckConn) Close() error {
	c.close()
	return c.Conn.Close()
}

// Send waits for no tunnel: caddy-l4's server serves all clients in one loop.
func TestFlowStuck(t *testing.T) {
	table, options, _, ended := flowTest(t)
	dial := options.Dial
	options.Dial = func(ctx context.Context) (net.Conn, any, error) {
		c, what, err := dial(ctx)
		closed, cancel := context.WithCancel(context.Background())
		return stuckConn{c, closed, cancel}, what, err
	}
	flow, _ := attach(t, table, "a", make(datagrams, 1), options)
	for range 10 * maxQueued {
		flow.Send([]byte("x"))
	}
	table.Close(Shutdown)
	if r := result(t, ended); r.Dropped < 8*maxQueued || r.SentDatagrams > 1 {
		t.Errorf("%+v", r)
	}
}

func TestFlowDialFails(t *testing.T) {
	table, options, _, ended := flowTest(t)
	away := errors.New("home is away")
	options.Dial = func(context.Context) (net.Conn, any, error) { return nil, nil, away }
	flow, _ := attach(t, table, "a", make(datagrams, 1), options)
	if r := result(t, ended); r.Reason != DialFailed || !errors.Is(r.Err, away) {
		t.Errorf("%+v", r)
	}
	<-flow.Context().Done()

	// The next one starts anew.
	next, adopted := attach(t, table, "a", make(datagrams, 1), options)
	if adopted || next == flow {
		t.Error("adopted a flow that has ended")
	}
	result(t, ended)
}

// ICMP errors do not end a flow: the service is back and gets the next
// datagram, from the same socket.
func TestFlowSurvivesRefusal(t *testing.T) {
	table, options, home, ended := flowTest(t)
	flow, _ := attach(t, table, "a", make(datagrams, 10), options)
	flow.Send([]byte("one"))
	port := home.want("one")
	at := home.LocalAddr().(*net.UDPAddr)
	home.Close()
	for range 10 {
		flow.Send([]byte("to nobody"))
		time.Sleep(time.Millisecond)
	}
	c, err := net.ListenUDP("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	home.UDPConn = c
	flow.Send([]byte("back")) // takes the last pending error, if there is one
	flow.Send([]byte("back"))
	text, got, err := home.receive()
	for err == nil && text == "to nobody" { // it came late
		text, got, err = home.receive()
	}
	if err != nil || text != "back" {
		t.Fatalf("home received %q, %v", text, err)
	}
	if got.String() != port.String() {
		t.Errorf("the socket was not kept: %v, before %v", got, port)
	}
	if len(ended) != 0 {
		t.Errorf("ended: %+v", <-ended)
	}
}

// When the upstream's socket is gone, as with a tunnel, the flow ends at once
// and the next datagram opens another.
func TestFlowSocketGone(t *testing.T) {
	table, options, home, ended := flowTest(t)
	var up atomic.Pointer[net.Conn]
	dial := options.Dial
	options.Dial = func(ctx context.Context) (net.Conn, any, error) {
		c, what, err := dial(ctx)
		up.Store(&c)
		return c, what, err
	}
	flow, _ := attach(t, table, "a", make(datagrams, 1), options)
	flow.Send([]byte("one"))
	home.want("one")
	(*up.Load()).Close()
	if r := result(t, ended); r.Reason != Revoked || r.Err == nil {
		t.Errorf("%+v", r)
	}
	flow.Send([]byte("lost")) // must not panic
	next, _ := attach(t, table, "a", make(datagrams, 1), options)
	next.Send([]byte("two"))
	home.want("two")
}

// A client's side that is gone costs its datagrams only, and keeps nothing
// alive.
func TestFlowClientGone(t *testing.T) {
	table, options, home, ended := flowTest(t)
	options.IdleTimeout = 200 * time.Millisecond
	flow, _ := attach(t, table, "a", brokenWriter{}, options)
	flow.Send([]byte("one"))
	port := home.want("one")
	stop := time.After(5 * time.Second)
	for {
		home.send(port, "into the void")
		select {
		case r := <-ended:
			if r.Reason != IdleTimeout || r.Received != 0 || r.Dropped == 0 {
				t.Errorf("%+v", r)
			}
			return
		case <-stop:
			t.Fatal("kept alive by its upstream alone")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, net.ErrClosed }

func TestFlowOrphan(t *testing.T) {
	table, options, home, ended := flowTest(t)
	options.IdleTimeout = 200 * time.Millisecond
	client := make(datagrams, 1000)
	flow, _ := attach(t, table, "a", client, options)
	flow.Send([]byte("one"))
	port := home.want("one")
	table.Orphan("test")
	stop := time.After(5 * time.Second)
	for {
		home.send(port, "still here")
		select {
		case r := <-ended:
			if r.Reason != ListenerClosed {
				t.Errorf("%+v", r)
			}
			return
		case <-stop:
			t.Fatal("an orphan is kept alive by its upstream")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A flow whose heir goes first is its former owner's again: with its client, its
// options and its end.
func TestFlowGoesBack(t *testing.T) {
	table, options, home, ended := flowTest(t)
	client, guest := make(datagrams, 9), make(datagrams, 9)
	flow, _ := attach(t, table, "a", client, options)
	flow.Send([]byte("one"))
	port := home.want("one")

	heir := options
	heir.Owner, heir.IdleTimeout = "heir", time.Hour
	heir.Ended = func(FlowResult) { t.Error("the heir was told of the end") }
	for range 2 { // of its datagrams
		if again, adopted := attach(t, table, "a", guest, heir); !adopted || again != flow {
			t.Fatal("another flow")
		}
	}
	home.send(port, "for the guest")
	guest.want(t, "for the guest")
	table.Orphan("heir")
	home.send(port, "for the client")
	client.want(t, "for the client")
	table.Orphan("heir") // nothing is left to give

	// Who is gone gets nothing back, whether he went before the heir came or
	// while the heir had it.
	table.Orphan("test")
	attach(t, table, "a", guest, heir)
	last := options
	last.Owner, last.IdleTimeout = "last", 200*time.Millisecond
	attach(t, table, "a", client, last)
	table.Orphan("heir")
	table.Orphan("last")
	for stop := time.After(5 * time.Second); ; {
		home.send(port, "still here")
		select {
		case got := <-ended:
			if got.Reason != ListenerClosed {
				t.Errorf("ended: %+v", got)
			}
			return
		case <-client: // what an orphan gets
		case <-stop:
			t.Fatal("it does not end")
		}
	}
}

func TestFlowHeader(t *testing.T) {
	table, options, home, ended := flowTest(t)
	options.Header = []byte("HEADER ")
	flow, _ := attach(t, table, "a", make(datagrams, 1), options)
	flow.Send([]byte("one"))
	home.want("HEADER one")
	flow.Send(nil)
	home.want("HEADER ")
	flow.Send(bytes.Repeat([]byte("x"), MaxDatagram)) // finds no room, must not panic
	table.Close(Shutdown)
	if r := result(t, ended); r.Sent != 3 || r.SentDatagrams != 2 || r.Dropped != 1 {
		t.Errorf("%+v", r)
	}
}

func TestFlowTableIsBounded(t *testing.T) {
	table, options, home, ended := flowTest(t)
	table.Max = 3
	client := make(datagrams, 100)
	talking, _ := attach(t, table, "talking", client, options)
	for range evictionExchange {
		talking.Send([]byte("hello"))
		home.send(home.want("hello"), "hello")
		client.want(t, "hello")
	}
	silent, _ := attach(t, table, "silent", client, options)
	attach(t, table, "young", client, options)

	full := FlowKey{"udp/[::]:1", "one too many", "home:1"}
	if _, _, err := table.Attach(full, client, options); !errors.Is(err, ErrTooManyFlows) {
		t.Fatalf("a full table says %v", err)
	}
	if table.Refused() != 1 || table.Len() != 3 {
		t.Errorf("%d refused, %d flows", table.Refused(), table.Len())
	}
	if _, adopted := attach(t, table, "silent", client, options); !adopted {
		t.Error("a full table cannot be adopted from")
	}

	// Both have been quiet for long enough; only one is no conversation.
	for _, flow := range []*Flow{talking, silent} {
		flow.touched.Add(-int64(time.Hour))
	}
	if _, _, err := table.Attach(full, client, options); err != nil {
		t.Fatal(err)
	}
	if r := result(t, ended); r.Reason != Evicted || r.Key.Client != "silent" {
		t.Errorf("%+v", r)
	}
}

func TestFlowsLeaveNothing(t *testing.T) {
	flows := 2000
	if testing.Short() {
		flows = 200
	}
	goroutines, files := runtime.NumGoroutine(), descriptors()
	home := newHome(t)
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := home.ReadFromUDP(buf)
			if err != nil {
				return
			}
			_, _ = home.WriteToUDP(buf[:n], from)
		}
	}()
	table := &FlowTable{Max: 100}
	options := FlowOptions{Dial: home.dial, IdleTimeout: time.Minute}
	client := make(datagrams, 1)
	for i := range flows {
		flow, _ := attach(t, table, fmt.Sprint(i), client, options)
		flow.Send([]byte("ping"))
		client.want(t, "ping")
		if i%50 == 49 {
			table.Close(Shutdown)
		}
	}
	if err := table.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	home.Close()
	settles(t, "goroutines", runtime.NumGoroutine, goroutines)
	settles(t, "descriptors", descriptors, files)
}
