package wireguard

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/dnsturns"
)

// orderTurns outlives configurations, as orders can: a renewal that
// certmagic's maintenance began goes on through a reload.
var orderTurns dnsturns.Turns

const (
	// lookupTimeout is about what a resolver takes to give up on a CNAME.
	lookupTimeout = 5 * time.Second

	// unlockTimeout bounds the release of a lock in a storage that hangs.
	unlockTimeout = 10 * time.Second
)

// subscribeTurns makes the DNS-01 orders of ctx's configuration that share a
// DuckDNS domain's one TXT value take turns. Call it in Provision.
//
// certmagic emits cert_obtaining before each attempt at an order, renewals
// and retries included, and waits for the handlers; it emits cert_obtained or
// cert_failed when the attempt is over and before it waits to try again. A
// few attempts end without either: when making the key or the signing request
// or saving the certificate fails, and when another handler refuses. Their
// turn ends with the next attempt, or else with dnsturns.Turns.Limit.
func subscribeTurns(ctx caddy.Context) error {
	app, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting the events app: %w", err)
	}
	return app.(*caddyevents.App).Subscribe(&caddyevents.Subscription{
		Events:  []string{"cert_obtaining", "cert_obtained", "cert_failed"},
		Modules: []caddy.ModuleID{"tls"},
		Handlers: []caddyevents.Handler{&turnHandler{
			storage: ctx.Storage(),
			logger:  ctx.Logger().Named("dns01"),
		}},
	})
}

// turnHandler handles the events of one configuration's orders. Its address
// tells that configuration's orders from another's.
type turnHandler struct {
	storage certmagic.Storage
	logger  *zap.Logger
}

// Handle begins or ends a turn. Its context is the tls app's and ends with
// the configuration, not with the order.
func (h *turnHandler) Handle(ctx context.Context, event caddy.Event) error {
	identifier, _ := event.Data["identifier"].(string)
	if event.Name() != "cert_obtaining" {
		orderTurns.End(h, identifier)
		return nil
	}
	err := orderTurns.Begin(ctx, dnsturns.Order{
		Record:     challengeRecord(ctx, event.Origin(), identifier),
		Identifier: identifier,
		Owner:      h,
		Storage:    h.storage,
		Over:       func(ctx context.Context) error { return h.orderOver(ctx, identifier) },
		Logger:     h.logger,
	})
	if err != nil {
		// Only this error keeps certmagic from going on.
		return fmt.Errorf("%w: %w", caddy.ErrEventAborted, err)
	}
	return nil
}

// orderOver returns when the order for identifier, whose configuration is
// gone, is over. certmagic holds a lock of this name during an order, and
// what it does last before it lets go is to remove the TXT value. If
// certmagic should rename its lock, this returns at once.
func (h *turnHandler) orderOver(ctx context.Context, identifier string) error {
	if caddy.Exiting() {
		return nil
	}
	lock := "issue_cert_" + identifier
	if err := h.storage.Lock(ctx, lock); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), unlockTimeout)
	defer cancel()
	return h.storage.Unlock(ctx, lock)
}

// challengeRecord is the name at which the CA reads the TXT value of an order
// for identifier, "" if the order does not use DNS-01. The origin of the event
// is the tls app, whose policies tell.
//
// What they do not tell is the `override_domain` of the duckdns provider,
// which Caddy has forgotten by now. But it is of no use without a CNAME from
// the challenge's own name to the DuckDNS domain, so that is looked up.
func challengeRecord(ctx context.Context, origin caddy.Module, identifier string) string {
	tls, ok := origin.(*caddytls.TLS)
	if !ok || tls.Automation == nil {
		return dnsturns.Record(identifier)
	}
	challenge := dnsChallenge(tls.Automation.Policies, identifier)
	if challenge == nil {
		return ""
	}
	record := dnsturns.Record(identifier)
	if challenge.OverrideDomain != "" {
		record = challenge.OverrideDomain
	}
	if dnsturns.Slot(record) != "" {
		return record
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if target, err := net.DefaultResolver.LookupCNAME(ctx, record); err == nil {
		return target
	}
	return record
}

// dnsChallenge is the first DNS-01 challenge that an order for identifier can
// use, nil if none: names without a policy, or whose policy leaves the issuers
// to Caddy, use other challenges.
func dnsChallenge(policies []*caddytls.AutomationPolicy, identifier string) *caddytls.DNSChallengeConfig {
	policy := automationPolicy(policies, identifier)
	if policy == nil {
		return nil
	}
	for _, issuer := range policy.Issuers {
		acme, ok := issuer.(interface{ GetACMEIssuer() *caddytls.ACMEIssuer })
		if !ok {
			continue
		}
		if challenges := acme.GetACMEIssuer().Challenges; challenges != nil && challenges.DNS != nil {
			return challenges.DNS
		}
	}
	return nil
}

// automationPolicy is the first policy for identifier, as the tls app has it.
func automationPolicy(policies []*caddytls.AutomationPolicy, identifier string) *caddytls.AutomationPolicy {
	for _, policy := range policies {
		subjects := policy.Subjects()
		if len(subjects) == 0 {
			return policy
		}
		for _, subject := range subjects {
			if certmagic.MatchWildcard(identifier, subject) {
				return policy
			}
		}
	}
	return nil
}

// Interface guard
var _ caddyevents.Handler = (*turnHandler)(nil)
