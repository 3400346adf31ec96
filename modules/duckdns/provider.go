// Package duckdns is the DNS provider `duckdns`, for certificates by DNS-01 and for
// the records of the ddns app. It is github.com/libdns/duckdns, with the options that
// github.com/caddy-dns/duckdns has for it, but for one thing: no error shows the token.
package duckdns

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/certmagic"
	"github.com/libdns/duckdns"
	"github.com/libdns/libdns"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/redact"
)

const (
	moduleID = "dns.providers.duckdns"

	// requestTimeout bounds what the library's client, which has no limit, takes for
	// one record.
	requestTimeout = 30 * time.Second

	// tokenLength is that of the tokens that DuckDNS gives out.
	tokenLength = 36
)

func init() {
	// Somebody who builds caddy-dns's provider into Caddy as well has that one. Packages
	// are initialized in the order of their paths, so that it comes first.
	if _, err := caddy.GetModule(moduleID); err == nil {
		return
	}
	caddy.RegisterModule(new(Provider))
}

// Provider sets the records of a DuckDNS domain: one A, one AAAA and one TXT for the
// domain and all names below it (https://www.duckdns.org/spec.jsp).
//
// Certificates by DNS-01 for several names of a domain share its TXT record. Their orders
// take turns: another order's challenge that is found in the record, such as that of a Caddy
// with this module at the other end of the tunnel, is waited for, until it has gone and
// resolvers have forgotten it, or 4 minutes if it stays the same. An order fails, and is
// tried again later, if that takes more than 10 minutes. With the app `wireguard` the orders
// of one Caddy queue before that, in order of arrival.
// ACME clients that do not look before they set the record may still spoil an order: they
// should use HTTP-01, or a DuckDNS domain of their own.
type Provider struct {
	// The account's token. Required. It should be a placeholder, `{env.DUCKDNS_TOKEN}` or
	// `{file./path}`, so that the token itself is not in the configuration, which the
	// admin API shows. One that stands for nothing is only warned of: `caddy validate`
	// is mostly run without the service's environment.
	APIToken string `json:"api_token,omitempty"`

	// The DuckDNS domain to set, where the name itself is not at DuckDNS and is only a
	// CNAME for one there.
	OverrideDomain string `json:"override_domain,omitempty"`

	// The DNS server that is asked for the present records, as host:port. Default:
	// 8.8.8.8:53. Challenges are looked for at DuckDNS's own.
	Resolver string `json:"resolver,omitempty"`

	client  *duckdns.Provider
	hide    *redact.Secrets // the token
	storage certmagic.Storage

	// nameServers returns where DuckDNS's domains are served, as host:port.
	nameServers func(context.Context) ([]string, error)

	holds *holds
	pace  pace
	log   *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (*Provider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  moduleID,
		New: func() caddy.Module { return new(Provider) },
	}
}

// errNoToken says what a provider cannot do without.
var errNoToken = errors.New("duckdns needs the account's token: duckdns {env.DUCKDNS_TOKEN}, in JSON as api_token")

// Provision expands the placeholders.
func (p *Provider) Provision(ctx caddy.Context) error {
	if strings.TrimSpace(p.APIToken) == "" {
		return errNoToken
	}
	p.storage, p.nameServers, p.holds, p.pace, p.log = ctx.Storage(), nameServersOf, processHolds, defaultPace, ctx.Logger()
	repl := caddy.NewReplacer()
	token := strings.TrimSpace(repl.ReplaceAll(p.APIToken, ""))
	p.client = &duckdns.Provider{
		APIToken:       token,
		OverrideDomain: repl.ReplaceAll(p.OverrideDomain, ""),
		Resolver:       repl.ReplaceAll(p.Resolver, ""),
	}
	if len(token) != tokenLength {
		// No error: who checks a configuration need not have the service's environment.
		fields := []zap.Field{zap.Int("length", len(token))}
		if strings.HasPrefix(p.APIToken, "{") && strings.HasSuffix(p.APIToken, "}") {
			fields = append(fields, zap.String("api_token", p.APIToken))
		}
		ctx.Logger().Warn("this is no token of DuckDNS, so its requests will fail; see whether the environment or the file has it for Caddy's user", fields...)
	}
	p.hide = redact.Values(token)
	return nil
}

// GetRecords returns what DNS says of a zone.
func (p *Provider) GetRecords(ctx context.Context, zone string) ([]libdns.Record, error) {
	return p.call(ctx, zone, nil, func(ctx context.Context, zone string, _ []libdns.Record) ([]libdns.Record, error) {
		return p.client.GetRecords(ctx, zone)
	})
}

// AppendRecords sets records, since a domain has one of each kind. With the challenge of
// an ACME order it waits until the record is free.
func (p *Provider) AppendRecords(ctx context.Context, zone string, records []libdns.Record) (done []libdns.Record, err error) {
	set := func() error {
		done, err = p.call(ctx, zone, records, p.client.AppendRecords)
		return err
	}
	if challenge := p.challengeOf(zone, records); challenge != nil {
		err := challenge.set(ctx, set, func(ctx context.Context) {
			if _, err := p.DeleteRecords(ctx, zone, records); err != nil {
				p.log.Warn("removing the challenge of an order that has ended", zap.Error(err))
			}
		})
		return done, err
	}
	err = set()
	return done, err
}

// SetRecords sets records. What is not named stays as it is.
func (p *Provider) SetRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return p.call(ctx, zone, records, p.client.SetRecords)
}

// DeleteRecords removes TXT records, but for the challenge of an ACME order if another's
// is there by now. With an A or AAAA record DuckDNS removes both.
func (p *Provider) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	if challenge := p.challengeOf(zone, records); challenge != nil {
		defer challenge.release()
		if challenge.isAnothers(ctx) {
			return records, nil
		}
	}
	return p.call(ctx, zone, records, p.client.DeleteRecords)
}

// call makes a call of the library's.
func (p *Provider) call(ctx context.Context, zone string, records []libdns.Record,
	method func(context.Context, string, []libdns.Record) ([]libdns.Record, error),
) ([]libdns.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	done, err := method(ctx, zone, records)
	if err != nil {
		return done, &hiddenError{err, p.hide}
	}
	return done, nil
}

// hiddenError is an error without the token that its text has. It is not to be
// unwrapped, or whoever does could show the text.
type hiddenError struct {
	err  error
	hide *redact.Secrets
}

func (e *hiddenError) Error() string { return e.hide.Replace(e.err.Error()) }

// Is tells errors apart as the error itself would.
func (e *hiddenError) Is(target error) bool { return errors.Is(e.err, target) }

// Timeout tells whether the request took too long.
func (e *hiddenError) Timeout() bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](e.err)
	return ok && timeout.Timeout()
}

// UnmarshalCaddyfile reads the provider's options. Syntax:
//
//	duckdns [<api_token>] {
//		api_token       <token>
//		override_domain <domain>
//		resolver        <host:port>
//	}
func (p *Provider) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the provider's name
	set := func(value *string) error {
		switch option := d.Val(); {
		case *value != "":
			return d.Errf("%s is given twice", option)
		case !d.AllArgs(value):
			return d.Errf("%s takes one value", option)
		}
		return nil
	}
	if d.NextArg() {
		p.APIToken = d.Val()
		if d.NextArg() {
			return d.Err("duckdns takes one token")
		}
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch d.Val() {
		case "api_token":
			err = set(&p.APIToken)
		case "override_domain":
			err = set(&p.OverrideDomain)
		case "resolver":
			err = set(&p.Resolver)
		default:
			err = d.Errf("duckdns has no option %q; it has api_token, override_domain and resolver", d.Val())
		}
		if err != nil {
			return err
		}
	}
	if strings.TrimSpace(p.APIToken) == "" {
		return d.WrapErr(errNoToken)
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Provider)(nil)
	_ caddyfile.Unmarshaler = (*Provider)(nil)
	_ libdns.RecordGetter   = (*Provider)(nil)
	_ libdns.RecordAppender = (*Provider)(nil)
	_ libdns.RecordSetter   = (*Provider)(nil)
	_ libdns.RecordDeleter  = (*Provider)(nil)
)
