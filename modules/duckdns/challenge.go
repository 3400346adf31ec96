package duckdns

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/libdns/libdns"
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
