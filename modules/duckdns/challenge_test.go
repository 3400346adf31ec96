package duckdns

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libdns/libdns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/homeward-relay/homeward/tests/fakeduckdns"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// value is one as challenges have it.
func value(name string) string { return name + strings.Repeat("-", 43-len(name)) }

// client is an ACME client's provider with a storage of its own.
type client struct {
	*Provider
	log *observer.ObservedLogs
}

// world is a DuckDNS in the library's way, with its name server.
type world struct {
	*fakeduckdns.Server
	resolver string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Server: fakeduckdns.New(token, "example", "other")}
	w.SetTTL(0)
	answering(t, func(r *http.Request) (*http.Response, error) {
		recorder := httptest.NewRecorder()
		w.ServeHTTP(recorder, r)
		return recorder.Result(), nil
	})
	udp, tcp := testnet.ListenUDPAndTCP(t)
	w.resolver = udp.LocalAddr().String()
	w.ListenDNS(t, udp, tcp)
	return w
}

// client returns a new one. It is quick, but never takes a challenge for one left behind.
func (w *world) client(t *testing.T, resolver string) client {
	t.Helper()
	p := provider(t, fmt.Sprintf(`{"api_token": %q}`, token))
	p.nameServers = func(context.Context) ([]string, error) { return []string{resolver}, nil }
	p.holds = newHolds()
	core, log := observer.New(zap.InfoLevel)
	p.log = zap.New(core)
	p.pace = pace{look: time.Millisecond, settle: 50 * time.Millisecond, looks: 3, left: time.Hour, longest: time.Hour}
	return client{p, log}
}

// set changes the value as others do.
func (w *world) set(t *testing.T, query string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	w.ServeHTTP(recorder, httptest.NewRequest("GET", "/update?token="+token+"&"+query, nil))
	if body := recorder.Body.String(); body != "OK" {
		t.Fatalf("%s: %s", query, body)
	}
}

func record(value string) []libdns.Record {
	return []libdns.Record{libdns.RR{Type: "TXT", Name: "_acme-challenge.example", Data: value}}
}

func (c client) append(ctx context.Context, value string) error {
	_, err := c.AppendRecords(ctx, "duckdns.org.", record(value))
	return err
}

func (c client) delete(t *testing.T, value string) {
	t.Helper()
	if _, err := c.DeleteRecords(t.Context(), "duckdns.org.", record(value)); err != nil {
		t.Error(err)
	}
}

// logged waits for a line in the log.
func (c client) logged(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		for _, entry := range c.log.All() {
			if strings.Contains(entry.Message, text) {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("never logged: %s", text)
		}
	}
}

// Two clients that have nothing in common but the record find it free and set it in the
// same moment: the one whose challenge is overwritten waits until the other is done.
func TestSameMoment(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	var through atomic.Bool
	var first http.ResponseWriter
	var firstRequest *http.Request
	bothSet := make(chan struct{})
	w.Answer = func(rw http.ResponseWriter, r *http.Request) bool {
		if through.Load() {
			return false
		}
		mu.Lock()
		if first == nil {
			first, firstRequest = rw, r
			mu.Unlock()
			<-bothSet
			return true
		}
		defer mu.Unlock()
		through.Store(true)
		w.ServeHTTP(first, firstRequest)
		w.ServeHTTP(rw, r)
		close(bothSet)
		return true
	}

	clients := map[string]client{"relay": w.client(t, w.resolver), "home": w.client(t, w.resolver)}
	set := make(chan string)
	for name, c := range clients {
		go func() {
			if err := c.append(t.Context(), value(name)); err != nil {
				t.Error(err)
			}
			set <- name
		}()
	}
	for range clients {
		name := <-set
		if got := w.TXT("example"); got != value(name) {
			t.Errorf("%s's challenge is %q", name, got)
		}
		clients[name].delete(t, value(name))
	}
	if got := w.TXT("example"); got != "" {
		t.Errorf("%q is left", got)
	}
}

// A client waits for the challenge of another, and for what resolvers remember of it.
func TestWaits(t *testing.T) {
	w := newWorld(t)
	w.SetTTL(1)
	w.set(t, "domains=example&txt="+value("other"))
	c := w.client(t, w.resolver)
	set := make(chan error, 1)
	go func() { set <- c.append(t.Context(), value("own")) }()
	c.logged(t, "waiting until another order is done")
	select {
	case err := <-set:
		t.Fatalf("it does not wait: %v", err)
	default:
	}
	gone := time.Now()
	w.set(t, "domains=example&clear=true&txt="+value("other"))
	if err := <-set; err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(gone); waited < time.Second {
		t.Errorf("it is set %v after the other one has gone, whose TTL is 1 s", waited)
	}
	if got := w.TXT("example"); got != value("own") {
		t.Errorf("the record has %q", got)
	}

	// It does not remove what is another's by now.
	w.set(t, "domains=example&txt="+value("third"))
	c.delete(t, value("own"))
	if got := w.TXT("example"); got != value("third") {
		t.Errorf("the record has %q", got)
	}
}

// What is no order's is overwritten at once, and so is what has been left behind.
func TestDoesNotWait(t *testing.T) {
	for _, tt := range []struct {
		name, before string
		prepare      func(*client)
		resolver     string
		logged       string
	}{
		{name: "nothing there"},
		{name: "another text", before: "site-verification=1"},
		{name: "its own", before: value("own")},
		{name: "left behind by itself", before: value("killed"), prepare: func(c *client) {
			challenge := c.challengeOf("duckdns.org.", record(value("killed")))
			challenge.remember(context.Background())
			c.holds = newHolds() // as in the next process
		}},
		{name: "left behind by another", before: value("other"), logged: "has left in the TXT record", prepare: func(c *client) {
			c.pace.left = 20 * time.Millisecond
		}},
		{name: "no answer from DNS", before: value("other"), resolver: "127.0.0.1:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.before != "" {
				w.set(t, "domains=example&txt="+url.QueryEscape(tt.before))
			}
			if tt.resolver == "" {
				tt.resolver = w.resolver
			}
			c := w.client(t, tt.resolver)
			if tt.prepare != nil {
				tt.prepare(&c)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := c.append(ctx, value("own")); err != nil {
				t.Fatal(err)
			}
			if got := w.TXT("example"); got != value("own") {
				t.Errorf("the record has %q", got)
			}
			if tt.logged != "" {
				c.logged(t, tt.logged)
			}
			c.delete(t, value("own"))
			if got := w.TXT("example"); got != "" {
				t.Errorf("the record has %q", got)
			}
		})
	}
}

// An order that others let have no turn fails, and says why.
func TestGivesUp(t *testing.T) {
	w := newWorld(t)
	w.set(t, "domains=example&txt="+value("other"))
	c := w.client(t, w.resolver)
	c.pace.longest = 50 * time.Millisecond
	err := c.append(t.Context(), value("own"))
	if err == nil || !strings.Contains(err.Error(), "should be ordered by one ACME client") {
		t.Errorf("got %v", err)
	}
	c.pace.longest = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.append(ctx, value("own")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if got := w.TXT("example"); got != value("other") {
		t.Errorf("the record has %q", got)
	}
}

// What another Caddy with the same storage has set is waited for as well.
func TestSharedStorage(t *testing.T) {
	w := newWorld(t)
	first, second := w.client(t, w.resolver), w.client(t, w.resolver)
	second.storage = first.storage
	if err := first.append(t.Context(), value("first")); err != nil {
		t.Fatal(err)
	}
	set := make(chan error, 1)
	go func() { set <- second.append(t.Context(), value("second")) }()
	second.logged(t, "waiting until another order is done")
	first.delete(t, value("first"))
	if err := <-set; err != nil {
		t.Fatal(err)
	}
	if got := w.TXT("example"); got != value("second") {
		t.Errorf("the record has %q", got)
	}
}

// Two orders of one Caddy, which nothing else has queued, take turns as well.
func TestOneClient(t *testing.T) {
	w := newWorld(t)
	c := w.client(t, w.resolver)
	var orders sync.WaitGroup
	for _, name := range []string{"first", "second", "third"} {
		orders.Go(func() {
			for n := range 3 {
				value := value(fmt.Sprint(name, n))
				if err := c.append(t.Context(), value); err != nil {
					t.Error(err)
					return
				}
				if got := w.TXT("example"); got != value {
					t.Errorf("%s's challenge is %q", name, got)
				}
				c.delete(t, value)
			}
		})
	}
	orders.Wait()
}

// A challenge that another has overwritten and removed by the time that one looks is set
// once more. One that DNS does not show at all is left to the ACME client to wait for.
func TestMissing(t *testing.T) {
	w := newWorld(t)
	sets := 0
	w.Answer = func(rw http.ResponseWriter, r *http.Request) bool {
		if sets++; sets == 1 || r.URL.Query().Get("txt") == value("nowhere") {
			fmt.Fprint(rw, "OK")
			return true
		}
		return false
	}
	c := w.client(t, w.resolver)
	c.pace.settle = time.Millisecond
	if err := c.append(t.Context(), value("own")); err != nil {
		t.Fatal(err)
	}
	if got := w.TXT("example"); sets != 2 || got != value("own") {
		t.Errorf("the record has %q after %d attempts", got, sets)
	}
	c.delete(t, value("own"))
	if err := c.append(t.Context(), value("nowhere")); err != nil {
		t.Error(err)
	}
}

// An order that ends while it looks whether its challenge stays takes it away.
func TestEndsBetween(t *testing.T) {
	w := newWorld(t)
	c := w.client(t, w.resolver)
	c.pace.settle = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	set := make(chan error, 1)
	go func() { set <- c.append(ctx, value("own")) }()
	for deadline := time.Now().Add(20 * time.Second); w.TXT("example") == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is set")
		}
	}
	cancel()
	if err := <-set; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := w.TXT("example"); got != "" {
		t.Errorf("the record has %q", got)
	}
}

// Other records, other domains and what is below a domain.
func TestChallengeOf(t *testing.T) {
	p := provider(t, fmt.Sprintf(`{"api_token": %q}`, token))
	delegated := provider(t, fmt.Sprintf(`{"api_token": %q, "override_domain": "other.duckdns.org"}`, token))
	for _, tt := range []struct {
		name, want string
		p          *Provider
		zone       string
		record     libdns.Record
	}{
		{"a domain's", "example.duckdns.org", p, "duckdns.org.", record(value("x"))[0]},
		{"below a domain", "example.duckdns.org", p, "duckdns.org.", libdns.TXT{Name: "_acme-challenge.a.b.Example", Text: value("x")}},
		{"delegated", "other.duckdns.org", delegated, "example.net.", libdns.TXT{Name: "_acme-challenge.www", Text: value("x")}},
		{"no challenge", "", p, "duckdns.org.", libdns.TXT{Name: "example", Text: "x"}},
		{"an address", "", p, "duckdns.org.", libdns.RR{Type: "A", Name: "example", Data: "203.0.113.5"}},
		{"elsewhere", "", p, "example.net.", libdns.TXT{Name: "_acme-challenge", Text: value("x")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if challenge := tt.p.challengeOf(tt.zone, []libdns.Record{tt.record}); challenge != nil {
				got = challenge.domain
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
