package relay

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultMaxFlows bounds the flows of a FlowTable that does not say otherwise.
// UDP sources can be forged, so the number of flows is the number that anyone
// cares to send us; each costs a socket, a goroutine and a buffer of
// MaxDatagram bytes.
const DefaultMaxFlows = 2048

const (
	// evictionSample is how many flows are looked at for one to evict. It
	// bounds what a new flow costs when the table is full; the map's order is
	// random, so the sample is.
	evictionSample = 64

	// evictionAge is how long a flow must have been quiet to be evicted, so
	// that its upstream had the time to answer.
	evictionAge = 5 * time.Second

	// evictionExchange is how many datagrams must have gone each way for a
	// flow to be a conversation, which is never evicted. A DNS query and its
	// answer are none: a resolver's clients use a new port, and so a new flow,
	// for each.
	evictionExchange = 4
)

// ErrTooManyFlows means that the table is full of flows which are in use.
var ErrTooManyFlows = errors.New("too many UDP flows")

// FlowTable holds the live flows. The zero value is empty and ready.
type FlowTable struct {
	// Max bounds the number of flows; 0 stands for DefaultMaxFlows.
	Max int

	refused atomic.Uint64

	mu      sync.Mutex
	flows   map[FlowKey]*Flow
	running int           // goroutines of flows, ended ones included
	idle    chan struct{} // closed when running falls to 0; nil while nobody waits
}

// Attach returns the live flow of this key, whose datagrams go to client from
// now on, or starts a new one if there is none that options.Keep keeps. Each
// Write to client is one datagram. It may happen at any time until the flow has
// ended or another Attach has brought another client, so also after the caller
// has stopped reading from it.
func (t *FlowTable) Attach(key FlowKey, client io.Writer, options FlowOptions) (flow *Flow, adopted bool, err error) {
	for {
		flow, adopted, victim, reason := t.attach(key, client, options)
		if flow != nil {
			return flow, adopted, nil
		}
		if victim == nil {
			t.refused.Add(1)
			return nil, false, ErrTooManyFlows
		}
		victim.end(reason, nil)
	}
}

// attach does one step of Attach: it returns a flow, or one to end first and
// why, or nothing.
func (t *FlowTable) attach(key FlowKey, client io.Writer, options FlowOptions) (flow *Flow, adopted bool, victim *Flow, reason Reason) {
	t.mu.Lock()
	defer t.mu.Unlock()

	// A flow that is over but still in the table is on its way out: it only
	// removes itself and not its successor.
	if flow = t.flows[key]; flow != nil {
		switch alive, adopted := flow.adopt(client, options); {
		case adopted:
			return flow, true, nil, ""
		case alive:
			return nil, false, flow, Replaced
		}
	}
	if flow == nil && len(t.flows) >= t.limit() {
		return nil, false, t.evictable(), Evicted
	}

	ctx, cancel := context.WithCancel(context.Background())
	flow = &Flow{
		table:   t,
		key:     key,
		header:  options.Header,
		started: time.Now(),
		ctx:     ctx,
		cancel:  cancel,
		options: options,
		wake:    make(chan struct{}, 1),
	}
	flow.client.Store(&client)
	flow.mu.Lock()
	flow.timer = time.AfterFunc(options.IdleTimeout, flow.checkIdle)
	flow.mu.Unlock()

	if t.flows == nil {
		t.flows = make(map[FlowKey]*Flow)
	}
	t.flows[key] = flow
	t.running++
	go func() {
		defer t.stopped()
		flow.run(options.Dial)
	}()
	return flow, false, nil, ""
}

func (t *FlowTable) limit() int {
	if t.Max > 0 {
		return t.Max
	}
	return DefaultMaxFlows
}

// evictable picks the quietest of some flows that are no conversation, as a
// connection tracker does under pressure: a flood from forged addresses must
// not shut out those who talk. The lock is held.
func (t *FlowTable) evictable() *Flow {
	var victim *Flow
	quietest := evictionAge
	seen := 0
	for _, flow := range t.flows {
		if seen++; seen > evictionSample {
			break
		}
		if min(flow.sentDatagrams.Load(), flow.receivedDatagrams.Load()) >= evictionExchange {
			continue
		}
		if quiet := flow.quiet(); quiet >= quietest {
			victim, quietest = flow, quiet
		}
	}
	return victim
}

func (t *FlowTable) remove(flow *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows[flow.key] == flow {
		delete(t.flows, flow.key)
	}
}

func (t *FlowTable) stopped() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	if t.running == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// Len returns the number of live flows.
func (t *FlowTable) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows)
}

// Refused returns how many times Attach has found the table full.
func (t *FlowTable) Refused() uint64 { return t.refused.Load() }

// Orphan says that owner will bring no more datagrams. Those of its flows that it
// has adopted from somebody who is still there go back: a configuration that
// fails to load when its servers have been started has had no time to be anything
// but a guest. Each of the others ends once its idle timeout has passed without
// an adoption, however much its upstream still sends: a listener that has been
// taken away must not be kept alive by one talkative upstream.
func (t *FlowTable) Orphan(owner any) {
	for _, flow := range t.snapshot() {
		if wait, orphaned := flow.orphan(owner); orphaned {
			time.AfterFunc(wait, func() {
				if flow.isOrphan(owner) {
					flow.end(ListenerClosed, nil)
				}
			})
		}
	}
}

// Close ends all flows that are in the table now.
func (t *FlowTable) Close(reason Reason) {
	for _, flow := range t.snapshot() {
		flow.end(reason, nil)
	}
}

func (t *FlowTable) snapshot() []*Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	flows := make([]*Flow, 0, len(t.flows))
	for _, flow := range t.flows {
		flows = append(flows, flow)
	}
	return flows
}

// Wait returns when nothing of any flow runs any more, or with ctx's error
// when that is done.
func (t *FlowTable) Wait(ctx context.Context) error {
	t.mu.Lock()
	if t.running == 0 {
		t.mu.Unlock()
		return nil
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()

	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
