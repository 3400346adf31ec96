package relay

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
)

// What Keep does not want ends before another begins, and has closed its socket
// by then.
func TestFlowIsReplaced(t *testing.T) {
	for _, tt := range []struct {
		name    string
		dialing bool // the flow is adopted while it is dialed
		keep    func(dialed any) bool
		want    bool // kept
	}{
		{"without Keep", false, nil, true},
		{"kept", false, func(dialed any) bool { return dialed == "the way" }, true},
		{"not kept", false, func(any) bool { return false }, false},
		{"kept while dialing", true, func(dialed any) bool { return dialed == "the way" }, true},
		{"not kept while dialing", true, func(dialed any) bool { return dialed != "the way" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table, options, h, ended := flowTest(t)
			dialing, client := make(chan struct{}), make(datagrams, 9)
			var first *closing
			options.Dial = func(ctx context.Context) (net.Conn, any, error) {
				<-dialing
				c, _, err := h.dial(ctx)
				first = &closing{Conn: c}
				return first, "the way", err
			}
			if !tt.dialing {
				close(dialing)
			}
			flow, _ := attach(t, table, "a", client, options)
			flow.Send([]byte("one"))
			if !tt.dialing {
				h.want("one")
			}

			options.Keep = tt.keep
			options.Dial = func(ctx context.Context) (net.Conn, any, error) {
				if !first.closed.Load() {
					t.Error("the former flow's socket is open")
				}
				return h.dial(ctx)
			}
			again, adopted := attach(t, table, "a", client, options)
			if adopted != (tt.want || tt.dialing) {
				t.Fatalf("adopted: %v", adopted)
			}
			if tt.dialing {
				close(dialing)
			}
			if tt.want {
				if again != flow {
					t.Error("another flow")
				}
				if tt.dialing {
					h.want("one")
				}
				again.Send([]byte("two"))
				h.want("two")
				return
			}
			if got := result(t, ended); got.Reason != Replaced || got.Dialed != "the way" {
				t.Errorf("ended: %+v", got)
			}
			<-flow.Context().Done()
			options.Keep = nil
			again, _ = attach(t, table, "a", client, options)
			again.Send([]byte("three"))
			h.want("three")
		})
	}
}

// closing knows that it has been closed.
type closing struct {
	net.Conn
	closed atomic.Bool
}

func (c *closing) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}
