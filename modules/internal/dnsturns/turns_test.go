package dnsturns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const (
	slotName = "example.duckdns.org"
	deadline = 30 * time.Second
)

// TestMain plays the other process of TestDeadProcess if told to.
func TestMain(m *testing.M) {
	if folder := os.Getenv("DNSTURNS_HOLD"); folder != "" {
		var turns Turns
		err := turns.Begin(context.Background(), order(&certmagic.FileStorage{Path: folder}, "a"))
		fmt.Println("begun", err)
		select {}
	}
	os.Exit(m.Run())
}

func storage(t *testing.T) *certmagic.FileStorage {
	t.Helper()
	return &certmagic.FileStorage{Path: t.TempDir()}
}

// quick are turns that lose no time between two orders.
func quick() *Turns { return &Turns{StepBack: time.Nanosecond, RecordTTL: time.Nanosecond} }

// order is an order for a name below the slot's, owned by its identifier.
func order(locker Locker, label string) Order {
	identifier := label + "." + slotName
	return Order{Record: Record(identifier), Identifier: identifier, Owner: identifier, Storage: locker}
}

// begin begins an order in the background; the channel gets Begin's result.
func begin(ctx context.Context, turns *Turns, o Order) <-chan error {
	begun := make(chan error, 1)
	go func() { begun <- turns.Begin(ctx, o) }()
	return begun
}

func must(t *testing.T, begun <-chan error) {
	t.Helper()
	select {
	case err := <-begun:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(deadline):
		t.Fatal("no turn")
	}
}

// waits checks that an order has not begun, after whatever else was going on
// had time to let it.
func waits(t *testing.T, begun <-chan error) {
	t.Helper()
	select {
	case err := <-begun:
		t.Fatalf("began out of turn: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("condition not met")
		}
	}
}

// queued is the number of orders that have a turn or wait.
func queued(turns *Turns) (n int) {
	turns.mu.Lock()
	defer turns.mu.Unlock()
	for _, s := range turns.slots {
		n += len(s.waiting)
		if s.current != nil {
			n++
		}
	}
	return n
}

func TestOrderOfArrival(t *testing.T) {
	turns, locker := quick(), storage(t)
	var begun []<-chan error
	for i := range 5 {
		begun = append(begun, begin(t.Context(), turns, order(locker, fmt.Sprint(i))))
		eventually(t, func() bool { return queued(turns) == i+1 })
	}
	for i := range begun {
		must(t, begun[i])
		if i+1 < len(begun) {
			waits(t, begun[i+1])
		}
		o := order(locker, fmt.Sprint(i))
		turns.End(o.Owner, o.Identifier)
	}
	if n := queued(turns); n != 0 {
		t.Errorf("%d orders left over", n)
	}
	if locks, _ := locker.List(t.Context(), "locks", true); len(locks) != 0 {
		t.Errorf("locks left over: %v", locks)
	}
}

func TestOtherSlotsGoAtOnce(t *testing.T) {
	turns, locker := quick(), storage(t)
	must(t, begin(t.Context(), turns, order(locker, "a")))
	must(t, begin(t.Context(), turns, Order{Record: "other.duckdns.org", Identifier: "other.duckdns.org", Storage: locker}))
}

// Several processes are several Turns on one storage, with several orders
// each. At no time may two orders have the slot.
func TestProcesses(t *testing.T) {
	locker := storage(t)
	var inside, orders atomic.Int32
	done := make(chan error, 6)
	for process := range 2 {
		turns := quick()
		for i := range 3 {
			o := order(locker, fmt.Sprintf("%d.%d", i, process))
			go func() {
				err := turns.Begin(t.Context(), o)
				if n := inside.Add(1); n != 1 {
					err = errors.Join(err, fmt.Errorf("%d orders at once", n))
				}
				orders.Add(1)
				time.Sleep(20 * time.Millisecond) // the order
				inside.Add(-1)
				turns.End(o.Owner, o.Identifier)
				done <- err
			}()
		}
	}
	for range cap(done) {
		must(t, done)
	}
}

// A process with many orders leaves the slot to another's now and then.
func TestStepBack(t *testing.T) {
	t.Parallel()
	// Longer than by default: on a busy machine the other process may look late.
	const stepBack = 5 * time.Second
	if standard := new(Turns).stepBack(); standard <= time.Second || standard > stepBack {
		t.Errorf("%v by default, and FileStorage looks once a second", standard)
	}
	locker := storage(t)
	here, there := &Turns{StepBack: stepBack, RecordTTL: time.Nanosecond}, quick()
	first, second, other := order(locker, "1"), order(locker, "2"), order(locker, "other")
	must(t, begin(t.Context(), here, first))
	begunOther := begin(t.Context(), there, other)
	begunSecond := begin(t.Context(), here, second)
	eventually(t, func() bool { return queued(here) == 2 })
	here.End(first.Owner, first.Identifier)
	must(t, begunOther)
	waits(t, begunSecond)
	there.End(other.Owner, other.Identifier)
	must(t, begunSecond)
}

// What a killed process held is free again when its lock goes stale.
func TestDeadProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("waits 10 s for a lock to go stale")
	}
	t.Parallel()
	locker := storage(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DNSTURNS_HOLD="+locker.Path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil || !strings.HasPrefix(string(line[:n]), "begun <nil>") {
		t.Errorf("other process: %q, %v", line[:n], err)
	}
	turns := quick()
	begun := begin(t.Context(), turns, order(locker, "b"))
	waits(t, begun)
	cmd.Process.Kill()
	cmd.Wait()
	must(t, begun)
}

func TestLimit(t *testing.T) {
	turns, locker := quick(), storage(t)
	turns.Limit = 500 * time.Millisecond
	lost, next := order(locker, "lost"), order(locker, "next")
	core, logs := observer.New(zapcore.DebugLevel)
	lost.Logger = zap.New(core)
	must(t, begin(t.Context(), turns, lost))
	must(t, begin(t.Context(), turns, next))
	if n := logs.FilterLevelExact(zapcore.WarnLevel).Len(); n != 1 || logs.Len() != 1 {
		t.Errorf("logged %v, want one warning", logs.All())
	}
	// The lost order turns up again: it must not end the turn of the next.
	turns.End(lost.Owner, lost.Identifier)
	turns.mu.Lock()
	if current := turns.slots[slotName].current; current == nil || current.Identifier != next.Identifier {
		t.Error("a late end has ended another order's turn")
	}
	turns.mu.Unlock()
}

func TestEndOfAnother(t *testing.T) {
	turns, locker := quick(), storage(t)
	first, second := order(locker, "first"), order(locker, "second")
	must(t, begin(t.Context(), turns, first))
	begun := begin(t.Context(), turns, second)
	eventually(t, func() bool { return queued(turns) == 2 })
	turns.End("another configuration", first.Identifier)
	turns.End(second.Owner, second.Identifier)
	turns.End(first.Owner, second.Identifier)
	turns.End(nil, "")
	waits(t, begun)
	turns.End(first.Owner, first.Identifier)
	must(t, begun)
}

// An attempt that ended without an event keeps its turn until the next
// attempt for the same name, which then queues behind the others.
func TestNextAttempt(t *testing.T) {
	turns, locker := quick(), storage(t)
	again, other := order(locker, "again"), order(locker, "other")
	must(t, begin(t.Context(), turns, again))
	begunOther := begin(t.Context(), turns, other)
	eventually(t, func() bool { return queued(turns) == 2 })
	again.Owner = "the next configuration"
	begunAgain := begin(t.Context(), turns, again)
	must(t, begunOther)
	waits(t, begunAgain)
	turns.End(other.Owner, other.Identifier)
	must(t, begunAgain)
}

func TestCancelWhileWaiting(t *testing.T) {
	for _, tt := range []struct {
		name string
		busy func(t *testing.T, here *Turns, locker Locker)
	}{
		{"for this process", func(t *testing.T, here *Turns, locker Locker) {
			must(t, begin(t.Context(), here, order(locker, "first")))
		}},
		{"for another process", func(t *testing.T, here *Turns, locker Locker) {
			must(t, begin(t.Context(), quick(), order(locker, "first")))
		}},
		{"for a record to be forgotten", func(t *testing.T, here *Turns, locker Locker) {
			here.RecordTTL = time.Hour
			same := order(locker, "*.second")
			must(t, begin(t.Context(), here, same))
			here.End(same.Owner, same.Identifier)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			turns, locker := quick(), storage(t)
			tt.busy(t, turns, locker)
			held := queued(turns)
			ctx, cancel := context.WithCancel(t.Context())
			begun := begin(ctx, turns, order(locker, "second"))
			eventually(t, func() bool { return queued(turns) == held+1 })
			waits(t, begun)
			cancel()
			select {
			case err := <-begun:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("got %v, want context.Canceled", err)
				}
			case <-time.After(deadline):
				t.Fatal("still waiting")
			}
			if n := queued(turns); n != held {
				t.Errorf("%d orders in the queue, want %d", n, held)
			}
		})
	}
}

// When a configuration goes away, its order's last act is to remove its TXT
// value: nobody else's may be there then.
func TestContextEndsDuringTurn(t *testing.T) {
	turns, locker := quick(), storage(t)
	ctx, cancel := context.WithCancel(t.Context())
	going, next := order(locker, "going"), order(locker, "next")
	asked, over := make(chan struct{}), make(chan struct{})
	going.Over = func(context.Context) error {
		close(asked)
		<-over
		return nil
	}
	must(t, begin(ctx, turns, going))
	begun := begin(t.Context(), turns, next)
	waits(t, begun)
	cancel()
	select {
	case <-asked:
	case <-time.After(deadline):
		t.Fatal("not asked whether the order is over")
	}
	waits(t, begun)
	close(over)
	must(t, begun)
}

// An order whose record is remembered waits for that alone: who comes
// meanwhile, with another record, goes first.
func TestRememberedRecordHoldsNobodyUp(t *testing.T) {
	turns, locker := quick(), storage(t)
	turns.RecordTTL = time.Hour
	again, other := order(locker, "again"), order(locker, "other")
	must(t, begin(t.Context(), turns, again))
	turns.End(again.Owner, again.Identifier)
	ctx, cancel := context.WithCancel(t.Context())
	begun := begin(ctx, turns, again)
	eventually(t, func() bool { return queued(turns) == 1 })
	must(t, begin(t.Context(), turns, other))
	turns.End(other.Owner, other.Identifier)
	waits(t, begun)
	cancel()
	if err := <-begun; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// If the order of a configuration that has gone is never over, Limit still
// holds, and the question whether it is over ends too.
func TestContextEndsAndOrderStays(t *testing.T) {
	turns, locker := quick(), storage(t)
	turns.Limit = 200 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	stuck := order(locker, "stuck")
	answered := make(chan struct{})
	stuck.Over = func(ctx context.Context) error {
		defer close(answered)
		<-ctx.Done()
		return ctx.Err()
	}
	must(t, begin(ctx, turns, stuck))
	cancel()
	must(t, begin(t.Context(), turns, order(locker, "next")))
	<-answered
}

// broken is a storage that cannot lock.
type broken struct{}

func (broken) Lock(context.Context, string) error   { return errors.New("read-only file system") }
func (broken) Unlock(context.Context, string) error { panic("unlocked what was not locked") }

func TestStorageCannotLock(t *testing.T) {
	turns := quick()
	first, second := order(broken{}, "first"), order(broken{}, "second")
	core, logs := observer.New(zapcore.DebugLevel)
	first.Logger = zap.New(core)
	must(t, begin(t.Context(), turns, first))
	begun := begin(t.Context(), turns, second)
	waits(t, begun)
	turns.End(first.Owner, first.Identifier)
	must(t, begun)
	if n := logs.FilterLevelExact(zapcore.WarnLevel).Len(); n != 1 {
		t.Errorf("logged %v, want one warning", logs.All())
	}
}

// A name and the wildcard below it have one TXT record: the second waits
// until no resolver remembers the first's value, and others go before it.
func TestRememberedRecord(t *testing.T) {
	turns, locker := quick(), storage(t)
	turns.RecordTTL = 2 * time.Second
	apex, wildcard, sub := order(locker, "a"), order(locker, "*.a"), order(locker, "b")
	must(t, begin(t.Context(), turns, apex))
	begunWildcard := begin(t.Context(), turns, wildcard)
	eventually(t, func() bool { return queued(turns) == 2 })
	begunSub := begin(t.Context(), turns, sub)
	eventually(t, func() bool { return queued(turns) == 3 })
	ended := time.Now()
	turns.End(apex.Owner, apex.Identifier)
	must(t, begunSub)
	turns.End(sub.Owner, sub.Identifier)
	must(t, begunWildcard)
	if waited := time.Since(ended); waited < turns.RecordTTL {
		t.Errorf("the wildcard's turn began %v after the other's end", waited)
	}
}

func TestLogLines(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	turns, locker := quick(), storage(t)
	first, second := order(locker, "first"), order(locker, "second")
	first.Logger, second.Logger = zap.New(core), zap.New(core)
	must(t, begin(t.Context(), turns, first))
	if logs.Len() != 0 {
		t.Fatalf("logged %v for an order that did not wait", logs.All())
	}
	begun := begin(t.Context(), turns, second)
	eventually(t, func() bool { return logs.Len() > 0 })
	turns.End(first.Owner, first.Identifier)
	must(t, begun)
	turns.End(second.Owner, second.Identifier)
	if logs.Len() != 1 {
		t.Fatalf("logged %v, want one line", logs.All())
	}
	line := logs.All()[0]
	if fields := line.ContextMap(); line.Level != zapcore.InfoLevel || fields["slot"] != slotName ||
		fields["identifier"] != second.Identifier || len(fields) != 2 {
		t.Errorf("logged %v %v", line.Message, fields)
	}
}
