package wireguard

import (
	"context"
	"fmt"
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
	slot := challengeSlot(event.Origin(), identifier)
	if slot == "" {
		return nil
	}
	err := orderTurns.Begin(ctx, dnsturns.Order{
		Slot:       slot,
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
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return h.storage.Unlock(ctx, lock)
}

// challengeSlot is the DuckDNS domain whose TXT value an order for identifier
// sets, "" if none. The origin of the event is the tls app, which knows
// whether the order uses DNS-01 at all, and with which `override_domain` of
// the challenge. (The provider's own `override_domain` it does not tell.)
func challengeSlot(origin caddy.Module, identifier string) string {
	tls, ok := origin.(*caddytls.TLS)
	if !ok || tls.Automation == nil {
		return dnsturns.Slot(identifier)
	}
	policy := automationPolicy(tls.Automation.Policies, identifier)
	if policy == nil {
		// No policy of one's own means the default challenges, without DNS.
		return ""
	}
	slot := ""
	for _, issuer := range policy.Issuers {
		acme, ok := issuer.(interface{ GetACMEIssuer() *caddytls.ACMEIssuer })
		if !ok {
			continue
		}
		challenges := acme.GetACMEIssuer().Challenges
		if challenges == nil || challenges.DNS == nil {
			continue
		}
		name := identifier
		if challenges.DNS.OverrideDomain != "" {
			name = challenges.DNS.OverrideDomain
		}
		if slot = dnsturns.Slot(name); slot != "" {
			break
		}
	}
	return slot
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
