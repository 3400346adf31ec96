package certfile

import (
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// appOf returns the tls app that loads a module, or nil.
func appOf(ctx caddy.Context) *caddytls.TLS {
	for _, module := range ctx.Modules() {
		if app, ok := module.(*caddytls.TLS); ok {
			return app
		}
	}
	return nil
}

// isActive reports whether an app is the running configuration's.
func isActive(app *caddytls.TLS) bool {
	active, err := caddy.ActiveContext().AppIfConfigured("tls")
	return err == nil && active == caddy.App(app)
}

// policiesWith returns a function for the automation policies that have m. They are
// looked up when they are asked for first, which must not be before all apps are
// provisioned: until then the http app adds to them.
func policiesWith(app *caddytls.TLS, m *Manager) func() []*caddytls.AutomationPolicy {
	return sync.OnceValue(func() (policies []*caddytls.AutomationPolicy) {
		for _, policy := range app.Automation.Policies {
			if slices.Contains(policy.Managers, certmagic.Manager(m)) {
				policies = append(policies, policy)
			}
		}
		return policies
	})
}

// site returns the Managers of the site that m is of, in their order.
func (m *Manager) site() []*Manager {
	if m.policies != nil {
		for _, policy := range m.policies() {
			return managers(policy) // policies that Caddy adds have the same ones
		}
	}
	return []*Manager{m}
}

func managers(policy *caddytls.AutomationPolicy) (ours []*Manager) {
	for _, manager := range policy.Managers {
		if m, ok := manager.(*Manager); ok {
			ours = append(ours, m)
		}
	}
	return ours
}

// clientsChoose reports whether a name is in m's site only since a client asks for it, and
// nobody is asked whether it may be. Caddy would order a certificate for any such name
// that no manager has one for.
func (m *Manager) clientsChoose(name string) bool {
	if m.policies == nil || name == "" || m.asksPermission {
		return false
	}
	for _, policy := range m.policies() {
		if len(policy.Subjects()) == 0 {
			return true
		}
		for _, subject := range policy.Subjects() {
			if certmagic.MatchWildcard(name, subject) {
				return strings.HasPrefix(subject, "*")
			}
		}
	}
	return false
}

// explain logs for which of its site's names the files are not what clients get. The first
// Manager of a site does it for all.
func (m *Manager) explain(logger *zap.Logger) {
	site := m.site()
	if site[0] != m {
		return
	}
	var owned, missing []string
	for _, policy := range m.policies() {
		names := policy.Subjects()
		if len(names) == 0 {
			names = subjects(m.current.Load().Leaf)
		}
		for _, name := range names {
			if len(caddytls.AllMatchingCertificates(name)) > 0 {
				owned = append(owned, name)
			} else if len(policy.Managers) == len(site) && !slices.ContainsFunc(site, func(m *Manager) bool { return m.covers(name) }) {
				missing = append(missing, name)
			}
		}
	}
	if len(owned) > 0 {
		logger.Warn("serving other certificates than those in files, since Caddy has its own",
			zap.Strings("names", owned),
			zap.String("remedy", "restart Caddy, which keeps those that it managed before a reload; if another site's certificate is for these names too, it comes first"))
	}
	if len(missing) > 0 {
		logger.Warn("certificates in files are not for all names of their site",
			zap.Strings("names", missing),
			zap.String("remedy", "have the program that renews them add these names; until then Caddy gets certificates for them itself, when it is asked for one"))
	}
}

// covers reports whether m's certificate is for a name of its site, which may be a
// wildcard.
func (m *Manager) covers(name string) bool {
	leaf := m.current.Load().Leaf
	return leaf.VerifyHostname(name) == nil ||
		slices.ContainsFunc(leaf.DNSNames, func(san string) bool { return strings.EqualFold(san, name) })
}
