package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxReadErrors is how often in a row reading from an upstream may fail
	// for a reason that is not known to pass.
	maxReadErrors = 100

	// readErrorPause keeps such an upstream from costing a core.
	readErrorPause = 10 * time.Millisecond
)

// FlowKey tells flows apart.
type FlowKey struct {
	// Listener is the network and address that the client sends to.
	Listener string

	// Client is the address that the client sends from.
	Client string

	// Upstream is whatever else makes a flow another one: the upstream's
	// address, and how it is spoken to.
	Upstream string
}

// FlowOptions say how a flow is relayed. Adopting a flow replaces them.
type FlowOptions struct {
	// Dial opens the upstream's socket, and may say something about it that
	// FlowResult.Dialed will have. It runs in the background, and its context
	// ends with the flow.
	Dial func(ctx context.Context) (conn net.Conn, dialed any, err error)

	// IdleTimeout ends a flow after this long without a datagram either way.
	// It must be positive.
	IdleTimeout time.Duration

	// Keep is asked whether a flow whose Dial has said dialed is what these
	// options want, when they are to become those of a flow that lives. If it
	// says no, that flow ends and another one begins. It must not call the
	// table. If nil, every flow is.
	Keep func(dialed any) bool

	// Header is put in front of every datagram to the upstream. It belongs to
	// what the key stands for: adopting a flow does not change it.
	Header []byte

	// Ended is called once, when the flow has ended. If nil, nobody is told.
	Ended func(FlowResult)

	// Owner is whom Orphan means. It must be comparable.
	Owner any
}

// use is a flow as one owner has it.
type use struct {
	client  io.Writer
	options FlowOptions
}

func (o *FlowOptions) wants(dialed any) bool { return o.Keep == nil || o.Keep(dialed) }

// FlowResult is what there is to say about a flow that has ended.
type FlowResult struct {
	Key FlowKey

	// Sent and Received count bytes of payload as Result does, the others
	// datagrams. Dropped ones found no room while the upstream was being
	// dialed, or a socket that did not take them.
	Sent, Received                            uint64
	SentDatagrams, ReceivedDatagrams, Dropped uint64

	Duration time.Duration
	Reason   Reason
	Err      error

	// Dialed is what FlowOptions.Dial has said.
	Dialed any
}

// Flow is the datagrams between one client address and one upstream.
type Flow struct {
	table   *FlowTable
	key     FlowKey
	header  []byte
	started time.Time

	// ctx ends with the flow.
	ctx    context.Context
	cancel context.CancelFunc

	sent, received                            atomic.Uint64
	sentDatagrams, receivedDatagrams, dropped atomic.Uint64
	touched                                   atomic.Int64 // nanoseconds since started

	// client takes what the upstream sends. It is swapped when the flow is
	// adopted, and outlives the call that brought it: caddy-l4's packet
	// connections can be written to after they have ended.
	client atomic.Pointer[io.Writer]

	// wake has a token when the queue may have something in it.
	wake chan struct{}

	mu          sync.Mutex // taken after the table's, never before
	options     FlowOptions
	orphaned    bool      // its owner is gone
	former      []use     // of the owners before that are not, who may get it back
	queue       []*[]byte // from queued, to go to the upstream in this order
	queuedBytes int
	timer       *time.Timer
	connected   bool // Dial has returned up, which is nil if it failed, and dialed
	up          net.Conn
	dialed      any
	reason      Reason // empty until the flow has ended
}

// Context ends with the flow.
func (f *Flow) Context() context.Context { return f.ctx }

// Reason says why the flow has ended; it is empty while the flow lives.
func (f *Flow) Reason() Reason {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reason
}

// run dials the upstream and then passes its datagrams to the client until
// the flow ends.
func (f *Flow) run(dial func(context.Context) (net.Conn, any, error)) {
	up, dialed, err := dial(f.ctx)
	wanted := f.connect(up, dialed)
	if err != nil {
		f.end(DialFailed, err)
		return
	}
	// Whoever ends the flow ends its context, also below, before run returns.
	defer context.AfterFunc(f.ctx, func() { _ = up.Close() })()
	defer up.Close()
	if !wanted {
		f.end(Replaced, nil)
		return
	}

	sending := make(chan struct{})
	go func() {
		defer close(sending)
		f.sendQueue(up)
	}()
	defer func() { <-sending }()

	buf := Datagrams.Get()
	defer Datagrams.Put(buf)
	for failures := 0; ; {
		n, err := up.Read(*buf)
		if err != nil {
			if f.ctx.Err() != nil {
				return
			}
			if passes(err) {
				continue
			}
			if failures++; ended(err) || failures >= maxReadErrors {
				f.end(upstreamSide.reason(err), err)
				return
			}
			select {
			case <-f.ctx.Done():
				return
			case <-time.After(readErrorPause):
			}
			continue
		}
		failures = 0
		f.received.Add(uint64(n))
		f.receivedDatagrams.Add(1)
		if _, err := (*f.client.Load()).Write((*buf)[:n]); err != nil {
			// The listener may have been closed by a reload; the client's next
			// datagram brings another writer.
			f.received.Add(-uint64(n))
			f.receivedDatagrams.Add(^uint64(0))
			f.dropped.Add(1)
			continue
		}
		f.touch()
	}
}

// connect notes what Dial has said, and reports whether that is wanted. If the
// flow has been adopted meanwhile, it may not be.
func (f *Flow) connect(up net.Conn, dialed any) (wanted bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connected, f.up, f.dialed = true, up, dialed
	return f.options.wants(dialed)
}

// passes reports whether a socket error tells of one datagram's fate (an ICMP
// error), not of the socket's.
func passes(err error) bool {
	for _, passing := range []syscall.Errno{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EMSGSIZE} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// adopt makes client and options the flow's, unless the flow is over or not what
// the options want. What is still being dialed cannot be told yet.
func (f *Flow) adopt(client io.Writer, options FlowOptions) (alive, adopted bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reason != "" {
		return false, false
	}
	if f.connected && !options.wants(f.dialed) {
		return true, false
	}
	if owner := f.options.Owner; owner != options.Owner && !f.orphaned {
		f.disown(options.Owner)
		f.former = append(f.former, use{*f.client.Load(), f.options})
	}
	f.give(use{client, options})
	f.touch()
	return true, true
}

// give makes the flow one owner's. f.mu is held.
func (f *Flow) give(to use) {
	f.options, f.orphaned = to.options, false
	f.client.Store(&to.client)
	f.timer.Reset(to.options.IdleTimeout)
}

// disown makes sure that an owner does not get the flow back. f.mu is held.
func (f *Flow) disown(owner any) {
	f.former = slices.DeleteFunc(f.former, func(u use) bool { return u.options.Owner == owner })
}

// orphan takes the flow from an owner, and gives it back to the one before. If
// there is none, it says that the flow is an orphan now, and after what time to
// end it unless it has been adopted.
func (f *Flow) orphan(owner any) (wait time.Duration, orphaned bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disown(owner)
	switch last := len(f.former) - 1; {
	case f.reason != "", f.options.Owner != owner:
		return 0, false
	case last >= 0:
		f.give(f.former[last])
		f.former = f.former[:last]
		return 0, false
	}
	f.orphaned = true
	return f.options.IdleTimeout, true
}

// isOrphan tells whether an owner was the last that the flow had.
func (f *Flow) isOrphan(owner any) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.orphaned && f.options.Owner == owner
}

func (f *Flow) touch() { f.touched.Store(int64(time.Since(f.started))) }

// quiet is how long nothing has moved.
func (f *Flow) quiet() time.Duration {
	return time.Since(f.started) - time.Duration(f.touched.Load())
}

// checkIdle runs when the idle timeout may be over.
func (f *Flow) checkIdle() {
	f.mu.Lock()
	if f.reason != "" {
		f.mu.Unlock()
		return
	}
	if left := f.options.IdleTimeout - f.quiet(); left > 0 {
		f.timer.Reset(left)
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	f.end(IdleTimeout, nil)
}

// end takes the flow out of the table and closes its socket. Only the first
// call counts. Neither the table's lock nor the flow's may be held.
func (f *Flow) end(reason Reason, err error) {
	f.mu.Lock()
	if f.reason != "" {
		f.mu.Unlock()
		return
	}
	f.reason = reason
	f.timer.Stop()
	f.dropped.Add(uint64(len(f.queue)))
	f.queue, f.queuedBytes = nil, 0
	if f.up != nil {
		// Before a successor can begin, which may need the address.
		_ = f.up.Close()
	}
	told, dialed := f.options.Ended, f.dialed
	f.mu.Unlock()

	f.table.remove(f)
	// Last, because the table counts a flow as running until then.
	defer f.cancel()
	if told != nil {
		told(FlowResult{
			Key:               f.key,
			Sent:              f.sent.Load(),
			Received:          f.received.Load(),
			SentDatagrams:     f.sentDatagrams.Load(),
			ReceivedDatagrams: f.receivedDatagrams.Load(),
			Dropped:           f.dropped.Load(),
			Duration:          time.Since(f.started),
			Reason:            reason,
			Err:               err,
			Dialed:            dialed,
		})
	}
}
