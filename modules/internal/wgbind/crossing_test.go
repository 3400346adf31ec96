package wgbind

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// A crossing is noticed by what passes, in every order in which that can be.
func TestCrossing(t *testing.T) {
	const (
		index = 42
		wait  = time.Second // more than both besideMax and resendFirst
	)
	type step func(t *testing.T, b *Bind, to, elsewhere netip.AddrPort)
	send := func(t *testing.T, b *Bind, to netip.AddrPort, packet []byte) {
		t.Helper()
		endpoint, err := b.ParseEndpoint(to.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Send([][]byte{packet}, endpoint); err != nil {
			t.Fatal(err)
		}
	}
	call := func(t *testing.T, b *Bind, to, _ netip.AddrPort) {
		send(t, b, to, message(initiationType, initiationSize, 4, index))
	}
	reply := func(t *testing.T, b *Bind, to, _ netip.AddrPort) {
		send(t, b, to, message(responseType, responseSize, 8, 7))
	}
	replyElsewhere := func(t *testing.T, b *Bind, _, elsewhere netip.AddrPort) {
		send(t, b, elsewhere, message(responseType, responseSize, 8, 7))
	}
	answer := func(_ *testing.T, b *Bind, _, _ netip.AddrPort) {
		b.resender.received(message(responseType, responseSize, 8, index), new(conn.StdNetEndpoint))
	}
	refusal := func(_ *testing.T, b *Bind, _, _ netip.AddrPort) {
		b.resender.received(message(cookieType, cookieSize, 4, index), new(conn.StdNetEndpoint))
	}
	other := func(_ *testing.T, b *Bind, _, _ netip.AddrPort) {
		b.resender.received(message(responseType, responseSize, 8, index+1), new(conn.StdNetEndpoint))
	}
	passes := func(d time.Duration) step {
		return func(_ *testing.T, b *Bind, to, _ netip.AddrPort) {
			b.resender.mu.Lock()
			defer b.resender.mu.Unlock()
			if i := b.resender.calling[to.String()]; i != nil {
				i.timer.Stop() // which knows nothing of that
				i.since = i.since.Add(-d)
			}
			for to, at := range b.resender.replied {
				b.resender.replied[to] = at.Add(-d)
			}
		}
	}
	later, atOnce := passes(wait), passes(-time.Hour)
	for _, test := range []struct {
		name      string
		steps     []step
		want      bool
		roundTrip time.Duration // at least
	}{
		{"replied, then answered", []step{call, later, reply, answer}, true, wait},
		{"answered, then replied", []step{call, later, answer, reply}, true, wait},
		{"called and replied side by side", []step{call, atOnce, reply}, true, resendFirst},
		{"replied and called side by side", []step{reply, atOnce, call}, true, resendFirst},
		{"only replied", []step{call, later, reply}, false, 0},
		{"only answered", []step{call, later, answer}, false, 0},
		{"replied, and another is answered", []step{call, later, reply, other}, false, 0},
		{"replied long before", []step{reply, later, call, answer}, false, 0},
		{"replied to somebody else", []step{call, replyElsewhere, answer}, false, 0},
		{"refused", []step{call, later, refusal, reply}, false, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := New()
			crossings := make(chan *Crossing, 4)
			b.OnCrossing(func(c *Crossing) { crossings <- c })
			open(t, b, 0)
			to, elsewhere := addressOf(reader(t)), addressOf(reader(t))
			for _, step := range test.steps {
				step(t, b, to, elsewhere)
			}
			b.resender.mu.Lock()
			i := b.resender.calling[to.String()]
			noticed := i != nil && i.crossing != nil
			b.resender.mu.Unlock()
			if noticed != test.want {
				t.Fatalf("noticed %v, want %v", noticed, test.want)
			}
			if !test.want {
				return
			}
			c := mustCross(t, crossings)
			if c.Endpoint != to || c.RoundTrip < test.roundTrip {
				t.Errorf("got %v, %v", c.Endpoint, c.RoundTrip)
			}
			if c.Settled() {
				t.Error("it is settled before anything has been done")
			}
			answer(t, b, to, elsewhere) // of the same handshake, late or twice
			if c.Settled() {
				t.Error("it is settled by its own answer")
			}
			reply(t, b, to, elsewhere)
			if !c.Settled() {
				t.Error("the other end's next handshake has not settled it")
			}
			if len(crossings) > 0 {
				t.Error("it is noticed twice")
			}
		})
	}
}

func addressOf(other *net.UDPConn) netip.AddrPort {
	return other.LocalAddr().(*net.UDPAddr).AddrPort()
}

func mustCross(t *testing.T, crossings <-chan *Crossing) *Crossing {
	t.Helper()
	select {
	case c := <-crossings:
		return c
	case <-time.After(30 * time.Second):
		t.Fatal("the crossing is not noticed")
		return nil
	}
}

// A crossing is settled by this end's next call too.
func TestCrossingIsSettledByACall(t *testing.T) {
	b := New()
	crossings := make(chan *Crossing, 1)
	b.OnCrossing(func(c *Crossing) { crossings <- c })
	open(t, b, 0)
	other := reader(t)
	send := func(packet []byte) {
		if err := b.Send([][]byte{packet}, endpointOf(t, b, other)); err != nil {
			t.Fatal(err)
		}
	}
	send(message(initiationType, initiationSize, 4, 1))
	send(message(responseType, responseSize, 8, 7))
	b.resender.received(message(responseType, responseSize, 8, 1), new(conn.StdNetEndpoint))
	c := mustCross(t, crossings)
	if c.Settled() {
		t.Fatal("it is settled before anything has been done")
	}
	send(message(initiationType, initiationSize, 4, 2))
	if !c.Settled() {
		t.Error("a call has not settled it")
	}
}

// A call that has been given up is not sent again, and whoever has called is
// there. One that was made since is sent again.
func TestAbandonedIsNotSentAgain(t *testing.T) {
	call, reply := message(initiationType, initiationSize, 4, 42), message(responseType, responseSize, 8, 7)
	for _, test := range []struct {
		name        string
		first, next []byte
		want        []byte // by their types
	}{
		{"given up", call, reply, []byte{initiationType, responseType, 'e'}},
		{"made since", reply, call, []byte{responseType, initiationType, initiationType}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := New()
			open(t, b, 0)
			other := reader(t)
			send := func(packet []byte) {
				if err := b.Send([][]byte{packet}, endpointOf(t, b, other)); err != nil {
					t.Fatal(err)
				}
			}
			send(test.first)
			send(test.next)
			if b.Called(addressOf(other)).IsZero() {
				t.Error("not known to be called")
			}
			if given, since := test.name == "given up", b.UnansweredSince(addressOf(other)); given != since.IsZero() {
				t.Errorf("unanswered since %v", since)
			}
			b.resender.mu.Lock()
			i := b.resender.waiting[42]
			b.resender.mu.Unlock()
			b.resender.again(i)
			send([]byte("end"))
			for _, want := range test.want {
				if got, _ := mustRead(t, other); got[0] != want {
					t.Fatalf("got %d, want %d", got[0], want)
				}
			}
		})
	}
}

// Nothing is kept of a call that is too old to matter.
func TestCallsAreForgotten(t *testing.T) {
	for _, answered := range []bool{false, true} {
		b := New()
		open(t, b, 0)
		other := reader(t)
		if err := b.Send([][]byte{message(initiationType, initiationSize, 4, 42)}, endpointOf(t, b, other)); err != nil {
			t.Fatal(err)
		}
		if answered {
			b.resender.received(message(responseType, responseSize, 8, 42), new(conn.StdNetEndpoint))
		}
		b.resender.mu.Lock()
		i := b.resender.calling[addressOf(other).String()]
		i.since = i.since.Add(-resendLast)
		b.resender.mu.Unlock()
		b.resender.again(i)
		if called := b.Called(addressOf(other)); !called.IsZero() {
			t.Errorf("answered %v: called at %v", answered, called)
		}
		if n := len(b.resender.waiting); n != 0 {
			t.Errorf("answered %v: %d wait", answered, n)
		}
	}
}
