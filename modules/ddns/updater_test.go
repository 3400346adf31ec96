package ddns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libdns/libdns"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/homeward-relay/homeward/modules/internal/redact"
)

const secret = "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61"

// fakeProvider keeps what it is told, and fails as often as it is told to.
type fakeProvider struct {
	mu    sync.Mutex
	fails int
	set   []string
	tries []time.Time
}

func (p *fakeProvider) SetRecords(_ context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tries = append(p.tries, time.Now())
	if p.fails > 0 {
		p.fails--
		return nil, fmt.Errorf("KO for token=%s", secret)
	}
	for _, record := range records {
		rr := record.RR()
		p.set = append(p.set, fmt.Sprintf("%s %s %s %s", zone, rr.Name, rr.Type, rr.Data))
	}
	return records, nil
}

// changing is a source of tests.
type changing struct {
	mu  sync.Mutex
	now netip.Addr
}

func (c *changing) address(context.Context) (netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.now.IsValid() {
		return netip.Addr{}, errors.New("nobody knows")
	}
	return c.now, nil
}
func (*changing) interval() time.Duration { return watchInterval }
func (c *changing) become(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, _ = netip.ParseAddr(address)
}

// timeline is an updater at work in a bubble of synctest.
type timeline struct {
	*updater
	provider *fakeProvider
	source   *changing
	events   []string
	logs     *observer.ObservedLogs
}

func newTimeline(t *testing.T) *timeline {
	core, logs := observer.New(zapcore.DebugLevel)
	line := &timeline{provider: new(fakeProvider), source: new(changing), logs: logs}
	line.updater = &updater{
		target: &target{name: "example.duckdns.org", provider: line.provider, hide: hiding([]byte(`{"name": "duckdns", "api_token": "`+secret+`"}`), nil)},
		family: families[1],
		from:   line.source,
		check:  noCheck,
		// Something is known, or else the world's DNS would be asked.
		record: &record{published: netip.MustParseAddr("2001:db8::ffff"), at: time.Now(), setting: new(sync.Mutex)},
		logger: zap.New(core),
		emit: func(event string, _ *updater, address string, err error) {
			line.events = append(line.events, fmt.Sprint(event, " ", address, " ", err))
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		line.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return line
}

func (line *timeline) want(t *testing.T, after time.Duration, set ...string) {
	t.Helper()
	time.Sleep(after) // in a bubble of synctest, here and below, where no time passes while anybody is busy
	synctest.Wait()
	line.provider.mu.Lock()
	defer line.provider.mu.Unlock()
	for i := range set {
		set[i] = "duckdns.org. example AAAA " + set[i]
	}
	if !slices.Equal(line.provider.set, set) {
		t.Fatalf("the provider has been told %q, want %q", line.provider.set, set)
	}
}

func TestUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.want(t, time.Hour) // nobody knows
		line.source.become("2001:db8::1")
		line.want(t, 5*time.Second, "2001:db8::1")
		line.want(t, 23*time.Hour, "2001:db8::1")
		line.want(t, 2*time.Hour, "2001:db8::1", "2001:db8::1") // each day
		line.source.become("")
		line.want(t, time.Hour, "2001:db8::1", "2001:db8::1") // the record stays
		line.source.become("2001:db8::2")
		line.want(t, 5*time.Second, "2001:db8::1", "2001:db8::1", "2001:db8::2")
		if want := "ddns.updated 2001:db8::2 <nil>"; line.events[len(line.events)-1] != want {
			t.Errorf("the last event is %q, want %q", line.events, want)
		}
		if complaints := line.logs.FilterLevelExact(zapcore.WarnLevel).Len(); complaints > 2 {
			t.Errorf("%d complaints, want one for each time that nobody knows", complaints)
		}
	})
}

func TestFailuresAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.provider.fails = 10
		line.source.become("2001:db8::1")
		line.want(t, time.Hour, "2001:db8::1")
		line.provider.mu.Lock()
		tries := line.provider.tries
		line.provider.mu.Unlock()
		for i := 1; i < len(tries); i++ {
			pause := tries[i].Sub(tries[i-1])
			if want := min(firstRetry<<(i-1), lastRetry); pause != want {
				t.Errorf("pause %d is %s, want %s", i, pause, want)
			}
		}
		if len(tries) != 11 || line.record.failed != 10 || line.record.updated != 1 {
			t.Errorf("%d tries, %d failed, %d done", len(tries), line.record.failed, line.record.updated)
		}
		for _, entry := range line.logs.All() {
			if text := fmt.Sprint(entry.Message, entry.ContextMap()); strings.Contains(text, secret) {
				t.Errorf("the log has the token: %s", text)
			}
		}
		if text := fmt.Sprint(line.events); strings.Contains(text, secret) || !strings.Contains(text, "KO for token=REDACTED") {
			t.Errorf("the events are %s", text)
		}
	})
}

// A change that comes while the provider fails is what is set in the end.
func TestChangeWhileFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.provider.fails = 3
		line.source.become("2001:db8::1")
		time.Sleep(10 * time.Second)
		line.source.become("2001:db8::2")
		line.want(t, time.Hour, "2001:db8::2")
	})
}

func TestCheck(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	open := listener.Addr().(*net.TCPAddr).Port
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shut := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	for _, test := range []struct {
		name      string
		check     int
		published string
		want      bool
	}{
		{"open", open, "192.0.2.1", true},
		{"closed", shut, "192.0.2.1", false},
		{"off", noCheck, "192.0.2.1", true},
		{"published already", shut, "127.0.0.1", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			provider, core := new(fakeProvider), zap.NewNop()
			u := &updater{
				target: &target{name: "example.duckdns.org", provider: provider, hide: new(redact.Secrets)},
				family: families[0],
				from:   static(netip.MustParseAddr("127.0.0.1")), // no source would have it
				check:  test.check,
				record: &record{published: netip.MustParseAddr(test.published), setting: new(sync.Mutex)},
				logger: core,
				emit:   func(string, *updater, string, error) {},
			}
			u.once(t.Context())
			if got := len(provider.set) == 1; got != test.want {
				t.Errorf("got %q (%s), want it to be set: %v", provider.set, u.said, test.want)
			}
		})
	}
}

// An update whose answer is lost may have been done. The address that was there before is
// set again, and not taken for what DNS has.
func TestUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.source.become("2001:db8::1")
		line.want(t, 5*time.Second, "2001:db8::1")
		line.provider.mu.Lock()
		line.provider.fails = 1
		line.provider.mu.Unlock()
		line.source.become("2001:db8::2")
		time.Sleep(3 * time.Second)
		line.source.become("2001:db8::1")
		line.want(t, time.Minute, "2001:db8::1", "2001:db8::1")
	})
}

// A peer that is away for long, and then does not take connections for a moment.
func TestWaitingDoesNotMakeSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.want(t, time.Hour)
		line.provider.mu.Lock()
		line.provider.fails = 1
		line.provider.mu.Unlock()
		line.source.become("2001:db8::1")
		line.want(t, 10*time.Second, "2001:db8::1")
	})
}

func TestOtherSettingsSetAnew(t *testing.T) {
	r := &record{published: netip.MustParseAddr("2001:db8::1"), at: time.Now()}
	r.begin("one")
	u := &updater{record: r, settings: "one"}
	if !u.isRight(t.Context(), r.published) {
		t.Error("the first settings are others")
	}
	r.begin("one")
	if !u.isRight(t.Context(), netip.MustParseAddr("2001:db8::1")) {
		t.Error("the same settings set it anew")
	}
	r.begin("two")
	if u := (&updater{record: r, settings: "two"}); u.isRight(t.Context(), netip.MustParseAddr("2001:db8::1")) {
		t.Error("what other settings have set is right")
	}
	u.remember(netip.MustParseAddr("2001:db8::1")) // of the former configuration, late
	if r.published.IsValid() {
		t.Error("the former configuration has a say")
	}
}
