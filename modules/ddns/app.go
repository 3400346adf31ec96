// Package ddns is the app `ddns`: it keeps the A and AAAA records of names right, each
// from a source of its own. A home behind carrier-grade NAT has its relay's IPv4 address
// and its own IPv6 address, so the two move apart from each other.
package ddns

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/libdns/libdns"
	"github.com/miekg/dns"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/dnsturns"
	"github.com/homeward-relay/homeward/modules/wireguard"
)

func init() { caddy.RegisterModule(new(App)) }

const (
	// defaultCheck is the port at which a new address has to answer.
	defaultCheck = 443

	// stopTimeout bounds the wait for a provider at the end.
	stopTimeout = 5 * time.Second

	// noCheck is a check that is off.
	noCheck = -1
)

// App keeps DNS records right, also known as dynamic DNS. A record is set when its
// address has changed, when Caddy starts and DNS says something else or nothing is known
// of it, and every 24 hours, through restarts too: when it was last set is in Caddy's
// storage. What fails is tried again until the provider has taken it. An address that
// changes again and again is published at most every 5 minutes in the end. Records of a
// family that has no source are never touched.
//
// It emits the events `ddns.updated` and `ddns.failed`, with the domain, the family, the
// address and for the latter the error, and counts both in metrics. Failed is what the
// provider refuses, and once a day what lasts longer than 5 minutes: an address that is
// not known, or does not answer.
type App struct {
	// The records, by the domain name that has them.
	Domains map[string]*Domain `json:"domains,omitempty"`

	ctx     caddy.Context
	logger  *zap.Logger
	events  *caddyevents.App
	updates []*updater
	inForce *beginning
	cancel  context.CancelFunc
	ended   sync.WaitGroup
}

// Domain is a name and where its addresses come from.
type Domain struct {
	// The DNS provider that has the name's records, which must be able to set them.
	// Required.
	ProviderRaw json.RawMessage `json:"provider,omitempty" caddy:"namespace=dns.providers inline_key=name"`

	// Where the A record's address comes from. Default: the record is not touched.
	A *Source `json:"a,omitempty"`

	// Where the AAAA record's address comes from. Default: the record is not touched.
	AAAA *Source `json:"aaaa,omitempty"`

	// The TCP port at which a new address has to take a connection before it is
	// published: an address that does not is no better than the one that DNS has.
	// -1 switches the check off. Static addresses are not checked. Default: 443.
	Check int `json:"check,omitempty"`

	// The time to live of the records. Default: the provider's own.
	TTL caddy.Duration `json:"ttl,omitempty"`

	// The zone that has the name. Default: duckdns.org for names there, and else what
	// DNS says (SOA).
	Zone string `json:"zone,omitempty"`

	// Where in a Caddyfile the block and its options stood, for error messages.
	Origins wireguard.Origins `json:"origins,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "ddns",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision checks the configuration and loads the providers.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.logger = ctx, ctx.Logger()
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting the events app: %w", err)
	}
	a.events = events.(*caddyevents.App)
	a.inForce = &beginning{app: a, made: make(chan struct{})}
	if err := a.events.On("started", a.inForce); err != nil {
		return fmt.Errorf("waiting for the start of all apps: %w", err)
	}
	if err := a.distinct(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(a.Domains)) {
		domain := a.Domains[name]
		if domain == nil {
			domain = new(Domain)
		}
		if err := a.provision(name, domain); err != nil {
			return err
		}
	}
	return a.collect()
}

func (a *App) provision(name string, domain *Domain) error {
	fail := func(option string, err error) error {
		return domain.Origins.At(fmt.Errorf("ddns %s: %w", name, err), option, originBlock)
	}
	if err := domain.check(name); err != nil {
		return err
	}
	if domain.ProviderRaw == nil {
		return fail("provider", errors.New("provider is missing; it says who has the name's records: provider duckdns {env.DUCKDNS_TOKEN}"))
	}
	options := domain.ProviderRaw // which is taken away when it is loaded
	module, err := a.ctx.LoadModule(domain, "ProviderRaw")
	if err != nil {
		// Not wrapped, since what is inside may show a secret.
		return fail("provider", fmt.Errorf("loading the DNS provider: %s", hiding(options, nil).Replace(err.Error())))
	}
	provider, ok := module.(libdns.RecordSetter)
	if !ok {
		return fail("provider", fmt.Errorf("the provider %s cannot set records", module.(caddy.Module).CaddyModule().ID.Name()))
	}
	target := &target{
		name:     strings.ToLower(name),
		zone:     strings.ToLower(domain.Zone),
		ttl:      time.Duration(domain.TTL),
		provider: provider,
		hide:     hiding(options, module),
	}
	for _, family := range families {
		source := domain.source(family)
		if source == nil {
			continue
		}
		from, err := source.provision(a.ctx, family)
		if err != nil {
			return fail(family.option, err)
		}
		check := domain.Check
		if check == 0 {
			check = defaultCheck
		}
		if source.Static != "" {
			check = noCheck
		}
		a.updates = append(a.updates, &updater{
			target:   target,
			family:   family,
			from:     from,
			check:    check,
			settings: string(options) + "\n" + target.zone + "\n" + target.ttl.String(),
			record:   recordOf(name, family),
			storage:  a.ctx.Storage(),
			logger:   a.logger.With(zap.String("domain", name), zap.String("type", family.record)),
			emit:     a.emit,
			inDNS:    func(ctx context.Context) (netip.Addr, error) { return lookup(ctx, name, family) },
		})
	}
	return nil
}

// check returns what is wrong with a domain whatever its placeholders mean.
func (domain *Domain) check(name string) error {
	fail := func(option string, err error) error {
		return domain.Origins.At(fmt.Errorf("ddns %s: %w", name, err), option, originBlock)
	}
	if !nameSyntax.MatchString(name) {
		return fail("", errors.New("this is no domain name, such as example.duckdns.org"))
	}
	if domain.Zone != "" && !dns.IsSubDomain(dns.Fqdn(strings.ToLower(domain.Zone)), dns.Fqdn(strings.ToLower(name))) {
		return fail("zone", fmt.Errorf("the name is not in the zone %s", domain.Zone))
	}
	if domain.A == nil && domain.AAAA == nil {
		return fail("", errors.New("neither a nor aaaa says where an address comes from"))
	}
	if domain.Check < noCheck || domain.Check > 65535 {
		return fail("check", fmt.Errorf("check is a TCP port from 1 to 65535, or off, not %d", domain.Check))
	}
	if domain.TTL < 0 {
		return fail("ttl", fmt.Errorf("ttl is a duration such as 5m, not %s", time.Duration(domain.TTL)))
	}
	for _, family := range families {
		if source := domain.source(family); source != nil {
			if err := source.check(family); err != nil {
				return fail(family.option, err)
			}
		}
	}
	return nil
}

// distinct returns an error if two names have the same records, as all names of one
// DuckDNS domain do.
func (a *App) distinct() error {
	taken := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(a.Domains)) {
		records := cmp.Or(dnsturns.Slot(name), strings.ToLower(name))
		if other, ok := taken[records]; ok {
			err := fmt.Errorf("ddns %s: it has the same records as %s, which has a block already; with DuckDNS all names below a domain have that domain's", name, other)
			if domain := a.Domains[name]; domain != nil {
				err = domain.Origins.At(err, originBlock)
			}
			return err
		}
		taken[records] = name
	}
	return nil
}

func (domain *Domain) source(family family) *Source {
	if family.is4 {
		return domain.A
	}
	return domain.AAAA
}

// Start begins to look after the records, once all other apps have started too: one of
// them may fail, and then this configuration is to change nothing. And the events app,
// which comes when it comes, has to be ready for events.
func (a *App) Start() error {
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	for _, update := range a.updates {
		a.ended.Go(func() {
			defer update.record.end(update)
			select {
			case <-a.inForce.made:
				update.run(ctx)
			case <-ctx.Done():
			}
		})
	}
	return nil
}

// beginning is Caddy's event that all apps of a configuration have started.
type beginning struct {
	app  *App
	once sync.Once
	made chan struct{}
}

// Handle takes the records over. Caddy goes on to stop the former configuration's apps when
// it has returned.
func (b *beginning) Handle(context.Context, caddy.Event) error {
	b.once.Do(func() {
		for _, update := range b.app.updates {
			update.record.begin(update)
		}
		close(b.made)
	})
	return nil
}

// Stop ends it, and waits for what is under way, if not for long.
func (a *App) Stop() error {
	a.stop()
	return nil
}

// Cleanup is Stop for an app that Caddy does not stop, since another one could not
// start.
func (a *App) Cleanup() error {
	a.stop()
	return nil
}

func (a *App) stop() {
	if a.cancel == nil {
		return
	}
	a.cancel()
	ended := make(chan struct{})
	go func() {
		a.ended.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopTimeout): // a provider that does not heed its context
	}
}

// emit emits an event of a record.
func (a *App) emit(name string, u *updater, address netip.Addr, err error) {
	data := map[string]any{"domain": u.target.name, "type": u.family.record, "address": ""}
	if address.IsValid() {
		data["address"] = address.String()
	}
	if err != nil {
		data["error"] = err.Error()
	}
	a.events.Emit(a.ctx, name, data)
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)

	_ caddyevents.Handler = (*beginning)(nil)
)
