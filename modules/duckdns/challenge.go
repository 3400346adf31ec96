package duckdns

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/libdns"
	"github.com/miekg/dns"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/dnsturns"
)

// A DuckDNS domain has one TXT value, and a CA finds there only the challenge that was
// set last. The orders of one Caddy take turns (package dnsturns), and so do those of
// several with the same storage. The relay and the home behind it have no storage in
// common, and often want certificates for names of one domain: all they share is the
// value. So whoever finds another's challenge there leaves it until it has gone, and
// looks once more after setting its own, since two may set theirs in the same moment.

// pace is how the value is looked at.
type pace struct {
	// look is the pause between two looks.
	look time.Duration

	// settle is after setting a value how long another might come who has looked
	// before: about what a request to DuckDNS takes.
	settle time.Duration

	// looks is how often a value is looked for that was set, and a name server for an
	// answer.
	looks int

	// left is how long a challenge stays the same before it is taken for one that was
	// left behind. A CA is done sooner, also after the 2 minutes for which
	// certmagic looks whether the value has appeared.
	left time.Duration

	// longest is how long an order waits for others. A turn is longer.
	longest time.Duration
}

var defaultPace = pace{look: 5 * time.Second, settle: 3 * time.Second, looks: 5, left: 4 * time.Minute, longest: 10 * time.Minute}

// lookTimeout bounds a look at DNS.
const lookTimeout = 5 * time.Second

// isChallenge matches the values of DNS-01: a SHA-256 in base64url (RFC 8555, section
// 8.4). What else a domain may have is no order's.
var isChallenge = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`).MatchString

// challenge is a value to set for an ACME order.
type challenge struct {
	*Provider
	domain string // at DuckDNS
	value  string
	log    *zap.Logger
}

// challengeOf returns the challenge that records are, or nil.
func (p *Provider) challengeOf(zone string, records []libdns.Record) *challenge {
	if len(records) != 1 {
		return nil
	}
	rr := records[0].RR()
	domain := dnsturns.Slot(cmp.Or(p.client.OverrideDomain, libdns.AbsoluteName(rr.Name, zone)))
	if rr.Type != "TXT" || !isChallenge(rr.Data) || domain == "" {
		return nil
	}
	return &challenge{p, domain, rr.Data, p.log.With(zap.String("domain", domain))}
}

// holds are the TXT records that orders have, by their domains.
type holds struct {
	begin time.Time // of the process

	sync.Mutex
	of map[string]*hold

	// last is the value that was set last in each, by an order that is over if none has
	// the record.
	last map[string]string
}

// processHolds are those of this process, which outlive configurations, as orders can.
var processHolds = newHolds()

func newHolds() *holds {
	return &holds{begin: time.Now(), of: make(map[string]*hold), last: make(map[string]string)}
}

// hold is a record that an order has from before it sets its challenge until it has
// removed it.
type hold struct {
	value string
	over  chan struct{}
	end   *time.Timer // of an order that is never heard of again
}

// longestHold is longer than the ACME client takes before and after its challenge is set.
const longestHold = 20 * time.Minute

// take waits until no other order of this process has the record, and gives it to this one.
func (c *challenge) take(ctx context.Context) error {
	for {
		c.holds.Lock()
		other := c.holds.of[c.domain]
		switch {
		case other == nil:
			c.holds.of[c.domain] = &hold{c.value, make(chan struct{}), time.AfterFunc(longestHold, c.release)}
		case other.value == c.value:
			other.end.Reset(longestHold)
			other = nil
		}
		c.holds.Unlock()
		if other == nil {
			return nil
		}
		select {
		case <-other.over:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// extend gives the order as much time again.
func (c *challenge) extend() {
	c.holds.Lock()
	defer c.holds.Unlock()
	if own := c.holds.of[c.domain]; own != nil && own.value == c.value {
		own.end.Reset(longestHold)
	}
}

// release gives the record to others, if this order has it.
func (c *challenge) release() {
	c.holds.Lock()
	defer c.holds.Unlock()
	if own := c.holds.of[c.domain]; own != nil && own.value == c.value {
		own.end.Stop()
		close(own.over)
		delete(c.holds.of, c.domain)
	}
}

// set calls write when no other order's challenge is there, until it stays. It calls
// remove if it fails after that, for then nobody else does.
func (c *challenge) set(ctx context.Context, write func() error, remove func(context.Context)) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.pace.longest, fmt.Errorf(
		"other orders have had the TXT record of %s for %v; names of one DuckDNS domain should be ordered by one ACME client, or by HTTP-01", c.domain, c.pace.longest))
	defer cancel()
	written, err := c.untilSet(ctx, write)
	switch {
	case err == nil:
		c.extend()
	case err != nil && !written:
		c.release()
	case err != nil:
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		defer cancel()
		remove(ctx)
	}
	return err
}

// untilSet does what set does, and says whether something may have been written.
func (c *challenge) untilSet(ctx context.Context, write func() error) (written bool, err error) {
	for again := false; ; again = true {
		before, err := c.untilFree(ctx)
		if err != nil {
			return written, err
		}
		c.remember(ctx)
		written = true
		if err := write(); err != nil {
			return written, err
		}
		switch fate, err := c.settle(ctx, before); {
		case err != nil:
			return written, err
		case fate == overwritten:
			c.log.Info("another order has set its challenge in the same moment; waiting until it is over")
		case fate == kept || again:
			return written, nil
		default:
			c.log.Info("setting the challenge again, since DNS does not show it")
		}
	}
}

// fate is what has become of a value that was just set.
type fate int

const (
	kept        fate = iota // as far as can be seen
	overwritten             // by another's
	missing                 // not there yet, or overwritten and removed by another
)

// settle looks what becomes of the value, which was just set in place of another.
func (c *challenge) settle(ctx context.Context, before *txt) (fate, error) {
	if before == nil {
		return kept, nil
	}
	pause := c.pace.settle
	for range c.pace.looks {
		if err := wait(ctx, pause); err != nil {
			return 0, err
		}
		pause = c.pace.look
		found, err := c.look(ctx)
		switch {
		case err != nil:
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
		case found.value == c.value:
			return kept, nil
		case isChallenge(found.value) && found.value != before.value:
			return overwritten, nil
		}
	}
	return missing, nil
}

// untilFree waits until no other order's challenge is there, or the one that is there
// must have been left behind. It returns what is there then, or nil if DNS does not say:
// then it is as it would be without looking.
func (c *challenge) untilFree(ctx context.Context) (*txt, error) {
	var last *txt // another's
	var since, gone time.Time
	failed := 1
	for {
		found, err := c.look(ctx)
		switch {
		case err != nil && last == nil && failed < c.pace.looks:
			failed++
		case err != nil && last == nil:
			c.log.Warn("setting the challenge without knowing whether another order has the TXT record", zap.Error(err))
			return nil, context.Cause(ctx)
		case err != nil:
			// It may still be there.
		case !isChallenge(found.value) || found.value == c.value || c.isOurs(ctx, found.value):
			if gone.IsZero() {
				gone = time.Now()
			}
			// So long resolvers may remember it, which may have been for the same name.
			if last == nil || time.Since(gone) >= last.ttl {
				return found, nil
			}
		default:
			if last == nil {
				c.log.Info("waiting until another order is done with the TXT record")
			}
			if last == nil || found.value != last.value {
				since = time.Now()
			}
			last, gone = found, time.Time{}
			if unchanged := time.Since(since); unchanged >= c.pace.left {
				c.log.Warn("overwriting the challenge that another order has left in the TXT record", zap.Duration("unchanged", unchanged))
				return found, nil
			}
		}
		if err := wait(ctx, c.pace.look); err != nil {
			return nil, err
		}
	}
}

// isAnothers says whether the record has another order's challenge by now.
func (c *challenge) isAnothers(ctx context.Context) bool {
	found, err := c.look(ctx)
	return err == nil && isChallenge(found.value) && found.value != c.value
}

// key is where the storage has the value that was set last. A Caddy that was killed knows
// by it next time what it has left behind itself.
func (c *challenge) key() string { return "duckdns/" + c.domain + "/challenge.json" }

// stored is what the storage has.
type stored struct {
	Value string    `json:"value"`
	Set   time.Time `json:"set"`
}

func (c *challenge) remember(ctx context.Context) {
	c.holds.Lock()
	c.holds.last[c.domain] = c.value
	c.holds.Unlock()
	content, err := json.Marshal(stored{c.value, time.Now()})
	if err == nil {
		err = c.storage.Store(ctx, c.key(), content)
	}
	if err != nil {
		c.log.Warn("storing the challenge", zap.Error(err))
	}
}

// isOurs says whether a value is that of an order of this Caddy's that is over: since this
// order has the record, an earlier one of this process, or of the one before. What another
// one with the same storage has set since this one began may still be wanted.
func (c *challenge) isOurs(ctx context.Context, value string) bool {
	c.holds.Lock()
	last := c.holds.last[c.domain]
	c.holds.Unlock()
	if last == value {
		return true
	}
	content, err := c.storage.Load(ctx, c.key())
	var ours stored
	if err == nil {
		err = json.Unmarshal(content, &ours)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("loading the last challenge", zap.Error(err))
	}
	return ours.Value == value && ours.Set.Before(c.holds.begin)
}

// txt is an answer of DNS. The value is empty if there is none.
type txt struct {
	value string
	ttl   time.Duration
}

// look asks a name server of DuckDNS for the value. Others remember what was there.
func (c *challenge) look(ctx context.Context) (*txt, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	question := new(dns.Msg)
	question.SetQuestion(dns.Fqdn(c.domain), dns.TypeTXT)
	servers, err := c.nameServers(ctx)
	for _, server := range servers {
		var answer *dns.Msg
		if answer, _, err = new(dns.Client).ExchangeContext(ctx, question, server); err != nil {
			continue
		}
		if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
			err = fmt.Errorf("%s answers %s", server, dns.RcodeToString[answer.Rcode])
			continue
		}
		for _, rr := range answer.Answer {
			if rr, ok := rr.(*dns.TXT); ok {
				return &txt{strings.Join(rr.Txt, ""), time.Duration(rr.Hdr.Ttl) * time.Second}, nil
			}
		}
		return new(txt), nil
	}
	return nil, err
}

// nameServersOf returns at least one server of DuckDNS's, in the same order each time: one
// may hear of a change later than another.
func nameServersOf(ctx context.Context) ([]string, error) {
	records, err := net.DefaultResolver.LookupNS(ctx, "duckdns.org")
	if err != nil {
		return nil, err
	}
	slices.SortFunc(records, func(a, b *net.NS) int { return cmp.Compare(a.Host, b.Host) })
	var servers []string
	for _, record := range records {
		addresses, lookupErr := net.DefaultResolver.LookupHost(ctx, record.Host)
		if lookupErr != nil {
			err = lookupErr
		}
		for _, address := range addresses {
			servers = append(servers, net.JoinHostPort(address, "53"))
		}
		// One that answers is enough, and a second one in case it does not.
		if len(servers) > 1 {
			break
		}
	}
	if len(servers) == 0 {
		return nil, cmp.Or(err, errors.New("duckdns.org has no name server"))
	}
	return servers, nil
}

// wait returns after a time, and an error if ctx ends before.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// storage is what a challenge needs of certmagic.Storage.
type storage interface {
	Store(ctx context.Context, key string, value []byte) error
	Load(ctx context.Context, key string) ([]byte, error)
}

var _ storage = certmagic.Storage(nil)
