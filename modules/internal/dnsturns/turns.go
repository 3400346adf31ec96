// Package dnsturns lets ACME orders that share one TXT record take turns.
//
// DuckDNS keeps one TXT value per domain. Two DNS-01 orders that run at the
// same time for names of one domain overwrite each other's value, and one of
// them fails, counts against the CA's limits and is tried again much later.
// Turns serializes such orders: within the process in order of arrival, and
// between processes that share a storage by a lock in it.
//
// A turn ends when its order does, and at the latest after Limit: an order
// that vanishes without a word holds up the others, but not for good.
package dnsturns

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// defaultLimit is longer than an order that fails slowly: looking up the
	// zone, 2 minutes for the record to appear, 90 s for the CA's validation
	// and again for the certificate, and before that the 10 minutes for which
	// package duckdns waits for orders elsewhere; three times, since after a failure
	// an attempt begins at the CA's staging directory, and may end at a second CA.
	defaultLimit = 50 * time.Minute

	// defaultStepBack is longer than the second that certmagic's FileStorage
	// lets pass between two looks at a lock. Without it a process with many
	// orders takes the lock again before another has seen it free.
	defaultStepBack = 1500 * time.Millisecond

	// defaultRecordTTL is DuckDNS's TTL, and the longest time that Let's
	// Encrypt's resolvers remember an answer.
	defaultRecordTTL = time.Minute

	// notice is how long an order may be delayed without a log line.
	notice = 250 * time.Millisecond

	// unlockTimeout bounds the release of a lock in a storage that hangs.
	unlockTimeout = 10 * time.Second
)

// Locker is what turns need of a storage; certmagic.Storage has it.
type Locker interface {
	Lock(ctx context.Context, name string) error
	Unlock(ctx context.Context, name string) error
}

// Order is an ACME order about to begin.
type Order struct {
	// Record is the name at which the CA reads the TXT value, after CNAMEs.
	// Its Slot is what orders take turns at.
	Record string

	// Identifier is the name that a certificate is ordered for.
	Identifier string

	// Owner tells orders of different configurations apart. It must be
	// comparable.
	Owner any

	// Storage holds the lock by which processes take turns. If nil, only the
	// orders of this process do.
	Storage Locker

	// Over, if not nil, is called when the context of the order's
	// configuration has ended while its turn lasts. It returns when the order
	// is over too, including its removal of the TXT value, or when its own
	// context ends. If nil, the turn ends with the context.
	Over func(context.Context) error

	// Logger is for the few lines that there are: one at level info if the
	// order has to wait, and warnings. If nil, nothing is logged.
	Logger *zap.Logger
}

// Turns keeps the orders that have a turn or wait for one. The zero value is
// ready for use; the fields must not change once it is used.
type Turns struct {
	// Limit bounds a turn. Default: 50 minutes.
	Limit time.Duration

	// StepBack is how long the slot is left to other processes after a turn.
	// Default: 1.5 s.
	StepBack time.Duration

	// RecordTTL is how long an answer may be remembered. An order whose TXT
	// record another order has just used waits until that has passed.
	// Default: 1 minute.
	RecordTTL time.Duration

	mu    sync.Mutex
	slots map[string]*slot
}

// slot is one TXT value. Turns.mu guards it.
type slot struct {
	current *turn   // nil when nobody's
	waiting []*turn // in order of arrival

	freed time.Time            // when the last turn ended
	used  map[string]time.Time // when the last turn with that record ended

	// forgotten lets the queue go on when the first of the records that it
	// waits for can be remembered no more.
	forgotten *time.Timer
}

// turn is an order's place.
type turn struct {
	Order
	slot string
	mine chan struct{} // closed when it is the first of this process
	over chan struct{} // closed when the turn has ended

	// Turns.mu guards these.
	lasts  bool        // from the return of Begin to the end of the turn
	locked bool        // the storage's lock is held
	limit  *time.Timer // ends the turn
	detach func() bool // stops listening to the context
}

// Begin waits until it is the order's turn. A turn that an earlier order for
// the same identifier still has ends first: certmagic runs one order per
// identifier at a time, so that one is over, whatever became of it.
//
// An order whose record is in no slot begins at once, and needs no End.
//
// Begin returns an error only when ctx ends. When the storage cannot lock,
// the order gets its turn among those of this process, and a warning.
func (t *Turns) Begin(ctx context.Context, order Order) error {
	slot := Slot(order.Record)
	if slot == "" {
		return nil
	}
	order.Record = fold(order.Record)
	if order.Logger == nil {
		order.Logger = zap.NewNop()
	}
	order.Logger = order.Logger.With(zap.String("identifier", order.Identifier), zap.String("slot", slot))
	t.end(func(other *turn) bool {
		return other.slot == slot && other.Identifier == order.Identifier
	})

	delayed := time.AfterFunc(notice, func() {
		order.Logger.Info("waiting for a turn at the shared TXT record")
	})
	defer delayed.Stop()

	mine := t.enter(slot, order)
	if err := t.reach(ctx, mine); err != nil {
		t.leave(mine)
		return fmt.Errorf("waiting for the turn of %s at %s: %w", order.Identifier, slot, err)
	}
	return nil
}

// End ends the turn of owner's order for identifier, if it has one.
func (t *Turns) End(owner any, identifier string) {
	t.end(func(other *turn) bool {
		return other.Identifier == identifier && other.Owner == owner
	})
}

// reach takes a turn that has entered from the queue to its start.
func (t *Turns) reach(ctx context.Context, mine *turn) error {
	select {
	case <-mine.mine:
	case <-ctx.Done():
		return ctx.Err()
	}
	pause := time.NewTimer(t.stepBackLeft(mine))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
		return ctx.Err()
	}

	locked := false
	if mine.Storage != nil {
		// Each holder lets go after Limit, but FileStorage can keep a dead
		// process's lock fresh (it does for five seconds after a release,
		// whoever holds the lock then), and a storage may forget to time out.
		locking, cancel := context.WithTimeout(ctx, 2*t.turnLimit())
		err := mine.Storage.Lock(locking, mine.key())
		cancel()
		if err != nil && ctx.Err() == nil {
			mine.Logger.Warn("taking a turn without the lock in storage", zap.Error(err))
		}
		locked = err == nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	mine.locked = locked
	if err := ctx.Err(); err != nil {
		return err
	}
	mine.lasts = true
	mine.limit = time.AfterFunc(t.turnLimit(), func() {
		if t.finish(mine) {
			mine.Logger.Warn("ending a turn whose order has not been heard of again", zap.Duration("duration", t.turnLimit()))
		}
	})
	mine.detach = context.AfterFunc(ctx, func() { t.outlive(mine) })
	return nil
}

// outlive ends a turn whose configuration has gone, so that nothing will be
// heard of its order any more, once the order has gone too. Its TXT value is
// removed after its context has ended, and if that came after the next
// order's value was set, it would remove that one.
func (t *Turns) outlive(tn *turn) {
	if tn.Over != nil {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			select {
			case <-tn.over:
				cancel()
			case <-ctx.Done():
			}
		}()
		if err := tn.Over(ctx); err != nil && ctx.Err() == nil {
			tn.Logger.Warn("ending a turn without knowing that its order is over", zap.Error(err))
		}
	}
	t.finish(tn)
}

// end ends the running turns that match.
func (t *Turns) end(match func(*turn) bool) {
	var ending []*turn
	t.mu.Lock()
	for _, s := range t.slots {
		if s.current != nil && s.current.lasts && match(s.current) {
			ending = append(ending, s.current)
		}
	}
	t.mu.Unlock()
	for _, tn := range ending {
		t.finish(tn)
	}
}

// finish ends a turn and reports whether it was still running.
func (t *Turns) finish(tn *turn) bool {
	t.mu.Lock()
	lasted := tn.lasts
	tn.lasts = false
	t.mu.Unlock()
	if !lasted {
		return false
	}
	close(tn.over)
	tn.limit.Stop()
	tn.detach()
	t.leave(tn)
	return true
}

// enter puts an order in the queue of its slot.
func (t *Turns) enter(name string, order Order) *turn {
	tn := &turn{Order: order, slot: name, mine: make(chan struct{}), over: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.slots[name]
	if s == nil {
		s = &slot{used: make(map[string]time.Time)}
		if t.slots == nil {
			t.slots = make(map[string]*slot)
		}
		t.slots[name] = s
	}
	s.waiting = append(s.waiting, tn)
	t.next(s)
	return tn
}

// leave gives up a place, in the queue or at its head, and lets the next go.
func (t *Turns) leave(tn *turn) {
	t.mu.Lock()
	locked := tn.locked
	tn.locked = false
	t.mu.Unlock()
	if locked {
		// First this, so that the next need not look twice.
		ctx, cancel := context.WithTimeout(context.Background(), unlockTimeout)
		if err := tn.Storage.Unlock(ctx, tn.key()); err != nil {
			tn.Logger.Warn("releasing the lock in storage", zap.Error(err))
		}
		cancel()
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.slots[tn.slot]
	if s.current != tn {
		s.waiting = slices.DeleteFunc(s.waiting, func(other *turn) bool { return other == tn })
		t.next(s)
		return
	}
	s.current = nil
	if tn.limit != nil { // it had its turn
		s.freed = time.Now()
		s.used[tn.Record] = s.freed
	}
	t.next(s)
}

// next gives a free slot to the first in the queue whose record nobody can
// remember. While there is none the slot stays free, since who comes meanwhile
// may have another record. Call it with t.mu held.
func (t *Turns) next(s *slot) {
	if s.forgotten != nil {
		s.forgotten.Stop()
		s.forgotten = nil
	}
	if s.current != nil || len(s.waiting) == 0 {
		return
	}
	for name, at := range s.used {
		if time.Since(at) >= t.recordTTL() {
			delete(s.used, name)
		}
	}
	wait := t.recordTTL()
	for i, tn := range s.waiting {
		at, remembered := s.used[tn.Record]
		if !remembered {
			s.current = tn
			s.waiting = slices.Delete(s.waiting, i, i+1)
			close(tn.mine)
			return
		}
		wait = min(wait, time.Until(at.Add(t.recordTTL())))
	}
	s.forgotten = time.AfterFunc(wait, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.next(s)
	})
}

// stepBackLeft is how long a slot is still left to other processes.
func (t *Turns) stepBackLeft(tn *turn) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Until(t.slots[tn.slot].freed.Add(t.stepBack()))
}

// key is the name of the slot's lock in storage. FileStorage keeps no slashes.
func (tn *turn) key() string { return "homeward_dns-01_" + tn.slot }

func (t *Turns) turnLimit() time.Duration { return orDefault(t.Limit, defaultLimit) }
func (t *Turns) stepBack() time.Duration  { return orDefault(t.StepBack, defaultStepBack) }
func (t *Turns) recordTTL() time.Duration { return orDefault(t.RecordTTL, defaultRecordTTL) }

func orDefault(d, standard time.Duration) time.Duration {
	if d == 0 {
		return standard
	}
	return d
}
