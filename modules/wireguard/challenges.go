package wireguard

import (
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
)

const (
	// challengeHost is where certmagic may listen for challenges in place of a tunnel.
	challengeHost = "127.0.0.1"

	// challengePort443 and challengePort80 need no privilege. Whether another program
	// has them does not matter: certmagic then takes it that its own server is there.
	challengePort443 = 49443
	challengePort80  = 49080
)

// answerChallenges lets sites on a tunnel get their certificates by TLS-ALPN-01 and HTTP-01.
// Call it in Provision.
//
// Before each order certmagic listens where the authority will ask, in case no server does,
// with package net, and gives up if it cannot. In a Caddyfile, where a site or Caddy has an
// ACME issuer with options (`tls you@example.org` is enough), that is the first address of
// the site's `bind`. With `bind wireguard/wg0 [::]` it would be `wireguard/wg0`, which
// package net takes for a name. But the sites' own listeners answer challenges,
// wherever they are, so all that matters is that certmagic is content.
func answerChallenges(ctx caddy.Context) error {
	app, err := ctx.AppIfConfigured("tls")
	if err != nil {
		return nil // Caddy says it if it should be there
	}
	tls, ok := app.(*caddytls.TLS)
	if !ok || tls.Automation == nil {
		return nil
	}
	for _, policy := range tls.Automation.Policies {
		changed := false
		for _, issuer := range policy.Issuers {
			acme, ok := issuer.(interface{ GetACMEIssuer() *caddytls.ACMEIssuer })
			if !ok || !moveChallenges(acme.GetACMEIssuer().Challenges) {
				continue
			}
			if err := acme.GetACMEIssuer().Provision(ctx); err != nil {
				return fmt.Errorf("letting an ACME issuer listen for challenges elsewhere than in a tunnel: %w", err)
			}
			changed = true
		}
		if changed {
			if err := policy.RebuildCertMagic(tls); err != nil {
				return fmt.Errorf("letting an ACME issuer listen for challenges elsewhere than in a tunnel: %w", err)
			}
		}
	}
	return nil
}

// moveChallenges makes the place to listen for challenges one where package net can, and
// tells whether it was none. An address in brackets, as in `bind [::]`, is none either: it
// gets a second pair of them.
func moveChallenges(challenges *caddytls.ChallengesConfig) bool {
	if challenges == nil || challenges.DNS != nil { // nobody listens for DNS-01
		return false
	}
	host := challenges.BindHost
	if bare, ok := strings.CutPrefix(host, "["); ok {
		challenges.BindHost = strings.TrimSuffix(bare, "]")
		return true
	}
	if !strings.HasPrefix(host, networkTCP+"/") && !strings.HasPrefix(host, networkUDP+"/") {
		return false
	}
	challenges.BindHost = challengeHost
	if challenges.TLSALPN == nil {
		challenges.TLSALPN = new(caddytls.TLSALPNChallengeConfig)
	}
	if challenges.TLSALPN.AlternatePort == 0 {
		challenges.TLSALPN.AlternatePort = challengePort443
	}
	if challenges.HTTP == nil {
		challenges.HTTP = new(caddytls.HTTPChallengeConfig)
	}
	if challenges.HTTP.AlternatePort == 0 {
		challenges.HTTP.AlternatePort = challengePort80
	}
	return true
}
