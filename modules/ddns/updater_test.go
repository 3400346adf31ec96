package ddns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
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
	mu    sync.Mutex
	now   netip.Addr
	asked int
}

func (c *changing) address(context.Context) (netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if !c.now.IsValid() {
		return netip.Addr{}, fmt.Errorf("nobody knows at port %d", 40000+c.asked)
	}
	return c.now, nil
}
func (*changing) interval() time.Duration { return watchInterval }
func (c *changing) become(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, _ = netip.ParseAddr(address)
}

// alternate goes to and fro for an hour.
func (c *changing) alternate(one, other string) {
	for range 600 {
		c.become(one)
		time.Sleep(3 * time.Second)
		c.become(other)
		time.Sleep(3 * time.Second)
	}
}

// timeline is an updater at work in a bubble of synctest.
type timeline struct {
	*updater
	provider *fakeProvider
	source   *changing
	events   []string
	logs     *observer.ObservedLogs
	dns      netip.Addr
	asked    int // how often DNS was
}

func newTimeline(t *testing.T) *timeline {
	record := newRecord(make(chan struct{}, 1))
	record.published, record.at = netip.MustParseAddr("2001:db8::ffff"), time.Now()
	line := resume(t, record, &certmagic.FileStorage{Path: t.TempDir()})
	line.begin(t)
	return line
}

// resume is an updater of a process that knows a record, or nothing of it yet.
func resume(t *testing.T, record *record, storage certmagic.Storage) *timeline {
	core, logs := observer.New(zapcore.DebugLevel)
	line := &timeline{provider: new(fakeProvider), source: new(changing), logs: logs}
	line.updater = &updater{
		target:  &target{name: "example.duckdns.org", provider: line.provider, hide: hiding([]byte(`{"name": "duckdns", "api_token": "`+secret+`"}`), nil)},
		family:  families[1],
		from:    line.source,
		check:   noCheck,
		record:  record,
		storage: storage,
		logger:  zap.New(core),
		emit: func(event string, _ *updater, address netip.Addr, err error) {
			line.events = append(line.events, fmt.Sprint(event, " ", address, " ", err))
		},
		inDNS: func(context.Context) (netip.Addr, error) {
			line.asked++
			return line.dns, nil
		},
	}
	return line
}

// begin lets it work, until the end of the test or of what it returns.
func (line *timeline) begin(t *testing.T) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	line.record.begin(line.updater)
	go func() {
		defer close(done)
		line.run(ctx)
	}()
	end = sync.OnceFunc(func() {
		cancel()
		<-done
		line.record.end(line.updater)
	})
	t.Cleanup(end)
	return end
}

// tries is when the provider has been called.
func (line *timeline) tries() []time.Time {
	line.provider.mu.Lock()
	defer line.provider.mu.Unlock()
	return slices.Clone(line.provider.tries)
}

// wantBackoff wants the pauses to double from the first to the last, each at most a bit
// longer.
func wantBackoff(t *testing.T, tries []time.Time, late time.Duration) {
	t.Helper()
	for i := 1; i < len(tries); i++ {
		pause, want := tries[i].Sub(tries[i-1]), min(firstRetry<<(i-1), lastRetry)
		if pause < want || pause > want+late {
			t.Errorf("pause %d is %s, want %s", i, pause, want)
		}
	}
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
		tries := line.tries()
		wantBackoff(t, tries, 0)
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
				target:  &target{name: "example.duckdns.org", provider: provider, hide: new(redact.Secrets)},
				family:  families[0],
				from:    static(netip.MustParseAddr("127.0.0.1")), // no source would have it
				check:   test.check,
				record:  newRecord(make(chan struct{}, 1)),
				storage: &certmagic.FileStorage{Path: t.TempDir()},
				logger:  core,
				emit:    func(string, *updater, netip.Addr, error) {},
			}
			u.record.published = netip.MustParseAddr(test.published)
			u.record.begin(u)
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
	r := newRecord(nil)
	address := netip.MustParseAddr("2001:db8::1")
	r.published, r.at = address, time.Now()
	first := &updater{record: r, settings: "one"}
	r.begin(first)
	if !first.isRight(t.Context(), address) {
		t.Error("the first settings are others")
	}
	second := &updater{record: r, settings: "one"}
	r.begin(second)
	if !second.isRight(t.Context(), address) {
		t.Error("the same settings set it anew")
	}
	r.end(first)
	third := &updater{record: r, settings: "two"}
	r.begin(third)
	if third.isRight(t.Context(), address) {
		t.Error("what other settings have set is right")
	}
	r.set(second, address, time.Now()) // late
	if r.published.IsValid() {
		t.Error("the former configuration has a say")
	}
	fourth := &updater{record: r, settings: "two"}
	r.begin(fourth)
	r.set(third, address, time.Now()) // late as well, but it is what the fourth would set
	if r.published != address {
		t.Error("the fourth configuration would set it once more")
	}
}

// Of two configurations the later one has the say, and when that goes the other has it.
func TestTheLaterConfigurationHasTheSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		former := newTimeline(t)
		former.source.become("2001:db8::1")
		former.want(t, 5*time.Second, "2001:db8::1")
		later := resume(t, former.record, former.storage)
		later.settings = "others"
		later.source.become("2001:db8::2")
		end := later.begin(t)
		later.want(t, 5*time.Second, "2001:db8::2")
		former.source.become("2001:db8::3")
		former.want(t, time.Hour, "2001:db8::1")
		end()
		former.want(t, 5*time.Second, "2001:db8::1", "2001:db8::3")
	})
}

// The provider is busy for a configuration that heeds no end. Another one waits for it,
// and its own end is not held up.
func TestBusyProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.record.setting <- struct{}{}
		line.source.become("2001:db8::1")
		line.want(t, time.Minute)
		other := resume(t, line.record, line.storage)
		other.source.become("2001:db8::2")
		end := other.begin(t)
		other.want(t, time.Minute)
		end()
		<-line.record.setting
		line.want(t, 5*time.Second, "2001:db8::1")
		other.want(t, 0)
	})
}

// The source fails while an update is to be tried again.
func TestSourceFailsMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.provider.fails = 1
		line.source.become("2001:db8::1")
		time.Sleep(3 * time.Second)
		line.source.become("")
		line.want(t, time.Hour)
		line.source.mu.Lock()
		asked := line.source.asked
		line.source.mu.Unlock()
		if atMost := int(time.Hour/watchInterval) + 10; asked > atMost {
			t.Errorf("the source was asked %d times in an hour, want at most %d", asked, atMost)
		}
	})
}

// Whatever the provider refuses is tried again after longer and longer pauses, also if it
// is another address each time.
func TestBackoffOutlivesAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.provider.fails = 1000
		line.source.alternate("2001:db8::1", "2001:db8::2")
		tries := line.tries()
		wantBackoff(t, tries, watchInterval)
		if len(tries) < 10 {
			t.Errorf("%d tries in an hour", len(tries))
		}
	})
}

// Two machines that use one key make an address go to and fro. A few times the record
// follows, and then less and less often. After a rest it follows again.
func TestUnsettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.source.alternate("2001:db8::1", "2001:db8::2")
		tries := line.tries()
		if len(tries) < 10 {
			t.Fatalf("%d updates in an hour", len(tries))
		}
		wantBackoff(t, tries[changesAtOnce-1:], 2*watchInterval+3*time.Second) // it is another one for 3 s
		if complaints := line.logs.FilterMessageSnippet("again and again").Len(); complaints == 0 || complaints > len(tries) {
			t.Errorf("%d complaints and %d updates", complaints, len(tries))
		}
		time.Sleep(time.Hour)
		before := len(line.tries())
		line.source.become("2001:db8::3")
		time.Sleep(watchInterval)
		synctest.Wait()
		if got := len(line.tries()) - before; got != 1 {
			t.Errorf("%d updates after a rest", got)
		}
	})
}

// A failure that lasts is told once a day, one that passes is not.
func TestLastingFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.source.become("")
		time.Sleep(lastRetry - time.Minute)
		line.source.become("2001:db8::1")
		line.want(t, 5*time.Second, "2001:db8::1")
		if want := []string{"ddns.updated 2001:db8::1 <nil>"}; !slices.Equal(line.events, want) {
			t.Errorf("the events are %q, want %q", line.events, want)
		}
		line.source.become("")
		time.Sleep(50 * time.Hour)
		synctest.Wait()
		if want := "ddns.failed invalid IP nobody knows"; len(line.events) != 4 || !strings.HasPrefix(line.events[3], want) {
			t.Errorf("the events after 50 hours are %q, want three of %q", line.events[1:], want)
		}
		if line.record.failed != 3 {
			t.Errorf("%d are counted, want 3", line.record.failed)
		}
		if warnings := line.logs.FilterMessageSnippet("its address is not known").Len(); warnings != 4 {
			t.Errorf("%d warnings, want one for each time and day", warnings)
		}
	})
}

// Through restarts a record is set each day, and if DNS shows another address. What DNS
// shows is not enough: the machine's DNS server may have a line of its own for the name.
func TestRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &certmagic.FileStorage{Path: t.TempDir()}
		start := func(dns, address string) (line *timeline, end func()) {
			line = resume(t, newRecord(make(chan struct{}, 1)), storage)
			line.dns = netip.MustParseAddr(dns)
			line.source.become(address)
			return line, line.begin(t)
		}
		first, end := start("2001:db8::1", "2001:db8::1")
		first.want(t, time.Second, "2001:db8::1")
		end()
		for range 4 {
			line, end := start("2001:db8::1", "2001:db8::1")
			line.want(t, 5*time.Hour)
			end()
		}
		time.Sleep(5 * time.Hour)
		day, end := start("2001:db8::1", "2001:db8::1")
		day.want(t, time.Second, "2001:db8::1")
		end()
		other, end := start("2001:db8::9", "2001:db8::1")
		other.want(t, time.Second, "2001:db8::1")
		end()
		moved, end := start("2001:db8::1", "2001:db8::2")
		moved.want(t, time.Second, "2001:db8::2")
		end()
	})
}

// A name that no configuration has had for a while may have been set by somebody else.
func TestComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.source.become("2001:db8::1")
		line.want(t, 5*time.Second, "2001:db8::1")
		again := resume(t, line.record, line.storage)
		again.source.become("2001:db8::1")
		again.dns = netip.MustParseAddr("2001:db8::9")
		line.record.end(line.updater)
		again.begin(t)
		again.want(t, 5*time.Second, "2001:db8::1")
	})
}

// DNS is asked at the start. As long as an address does not answer, it is asked as seldom
// as that is, and not at all while the provider refuses: who knows what it has done.
func TestDNSIsAskedSeldom(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(*timeline)
		atMost  int
	}{
		{"refused", func(line *timeline) { line.provider.fails = 1000 }, 1},
		{"no answer", func(line *timeline) {
			line.check = 1 // where nothing listens
		}, 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				line := resume(t, newRecord(make(chan struct{}, 1)), &certmagic.FileStorage{Path: t.TempDir()})
				line.family = families[0]
				line.storeSet(t.Context(), netip.MustParseAddr("127.0.0.1"), time.Now())
				line.dns = netip.MustParseAddr("192.0.2.1")
				line.source.become("127.0.0.1")
				test.prepare(line)
				line.begin(t)
				line.want(t, time.Hour)
				if line.asked == 0 || line.asked > test.atMost {
					t.Errorf("DNS was asked %d times, want 1 to %d", line.asked, test.atMost)
				}
			})
		})
	}
}

// Of two machines that use one key, one does not answer. It is not asked each time that it
// is seen, nor complained of.
func TestSilentInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newTimeline(t)
		line.family, line.check = families[0], 1 // where nothing listens
		line.record.published = netip.MustParseAddr("192.0.2.1")
		line.source.alternate("192.0.2.1", "127.0.0.1")
		if asked := line.ask.next; asked != lastRetry {
			t.Errorf("the pause is %s, want %s", asked, lastRetry)
		}
		if complaints := line.logs.FilterMessageSnippet("does not answer").Len(); complaints < 10 || complaints > 15 {
			t.Errorf("%d complaints in an hour, want one in 5 minutes", complaints)
		}
		if len(line.tries()) > 0 {
			t.Errorf("the provider has been told %q", line.provider.set)
		}
	})
}

// Each day a record is set, whether it answers or not: after a restart, and after the
// provider has failed.
func TestPublishedIsNotChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &certmagic.FileStorage{Path: t.TempDir()}
		line := resume(t, newRecord(make(chan struct{}, 1)), storage)
		line.family, line.check = families[0], 1 // where nothing listens
		address := netip.MustParseAddr("127.0.0.1")
		line.storeSet(t.Context(), address, time.Now().Add(-25*time.Hour))
		line.dns = address
		line.source.become("127.0.0.1")
		line.provider.fails = 1
		line.begin(t)
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []string{"duckdns.org. example A 127.0.0.1"}; !slices.Equal(line.provider.set, want) {
			t.Errorf("the provider has been told %q, want %q", line.provider.set, want)
		}
	})
}

// What was being set when the process ended may have been set.
func TestDoubtOutlivesTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &certmagic.FileStorage{Path: t.TempDir()}
		first := resume(t, newRecord(make(chan struct{}, 1)), storage)
		first.source.become("2001:db8::1")
		end := first.begin(t)
		first.want(t, time.Second, "2001:db8::1")
		first.provider.fails = 1
		first.source.become("2001:db8::2")
		first.want(t, 3*time.Second, "2001:db8::1")
		end()
		next := resume(t, newRecord(make(chan struct{}, 1)), storage)
		next.source.become("2001:db8::1")
		next.dns = netip.MustParseAddr("2001:db8::1") // as a resolver remembers it
		next.begin(t)
		next.want(t, time.Second, "2001:db8::1")
	})
}
