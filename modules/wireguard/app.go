// Package wireguard is the Caddy face of Homeward's tunnels: the app
// `wireguard` with its configuration, what handlers and transports dial
// through, the listener networks inside tunnels, and the commands
// `caddy wireguard …`.
package wireguard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App owns userspace WireGuard tunnels. A tunnel needs no privilege, no
// network interface, no route and no firewall rule on the host: what goes
// through it are the connections of this configuration's handlers, transports
// and listeners, and nothing else.
//
// Tunnels outlive configurations. A reload that keeps a tunnel keeps its
// socket, its sessions and the connections inside, and changes in place what
// differs.
type App struct {
	// The tunnels by name. A name consists of letters, digits and hyphens; the
	// Caddyfile's default is `wg0`.
	Tunnels map[string]*Tunnel `json:"tunnels,omitempty"`

	ctx     caddy.Context
	logger  *zap.Logger
	tunnels map[string]*claimed
	peers   map[string]*claimed // by peer name; peer names are unique

	// layer4 is the layer4 app, if it has come across this one.
	layer4 *layer4.App

	started chan struct{} // closed by Start: dials may begin
	ended   chan struct{} // closed by Cleanup
}

// claimed is one tunnel as this configuration wants it.
type claimed struct {
	name      string
	claim     *tunnel.Claim
	hosts     map[string][]netip.Addr // by peer name
	resolvers []netip.AddrPort
	origins   Origins

	// listening has the listenerKeys at which servers of this configuration listen.
	listening sync.Map
}

// pool holds the tunnels of this process by name, across configurations.
var pool = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "wireguard",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision checks the configuration, reads its secrets and claims its
// tunnels. It opens no socket.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.logger = ctx, ctx.Logger()
	repl := caddy.NewReplacer()
	a.tunnels = make(map[string]*claimed)
	a.peers = make(map[string]*claimed)
	a.started, a.ended = make(chan struct{}), make(chan struct{})

	// Not kept in a.Tunnels: what a wg_quick file supplies has secrets in it.
	wanted := make(map[string]*Tunnel)
	parsed := make(map[string]*parsedTunnel)
	for _, name := range slices.Sorted(maps.Keys(a.Tunnels)) {
		t, err := a.Tunnels[name].withFile(name, repl, a.logger)
		if err != nil {
			return err
		}
		p, err := t.parse(name, repl)
		if err != nil {
			return err
		}
		wanted[name], parsed[name] = t, p
		if inline := a.Tunnels[name].inlineSecrets(); len(inline) > 0 {
			a.logger.Warn("secrets are in the configuration itself, which the admin API shows and Caddy keeps on disk; put each into a file that only Caddy's user can read, and name it here as {file./path/to/key}",
				zap.String("tunnel", name), zap.Strings("options", inline))
		}
	}
	if err := uniquePeers(wanted); err != nil {
		return err
	}

	for _, name := range slices.Sorted(maps.Keys(parsed)) {
		p := parsed[name]
		p.config.Store = ctx.Storage()
		value, _, err := pool.LoadOrNew(name, func() (caddy.Destructor, error) {
			return tunnel.New(name), nil
		})
		if err != nil {
			return fmt.Errorf("taking tunnel %s: %w", name, err)
		}
		c := &claimed{
			name:      name,
			claim:     value.(*tunnel.Tunnel).Claim(p.config, a.logger.With(zap.String("tunnel", name))),
			hosts:     p.hosts,
			resolvers: p.resolvers,
			origins:   wanted[name].Origins,
		}
		a.tunnels[name] = c
		for peer := range p.hosts {
			a.peers[peer] = c
		}
	}
	if err := answerChallenges(ctx); err != nil {
		return err
	}
	return subscribeTurns(ctx)
}

// Start brings up the tunnels that are down and adds to those that are up
// what this configuration adds. What it takes away goes when the former
// configuration does, because this one may yet fail.
func (a *App) Start() error {
	for _, name := range slices.Sorted(maps.Keys(a.tunnels)) {
		if err := a.tunnels[name].claim.Prepare(); err != nil {
			return a.tunnels[name].origins.At(explainPort(a.tunnels[name], err), "listen_port", originBlock)
		}
	}
	close(a.started)
	return nil
}

// explainPort says it if a tunnel's port is busy because another tunnel has it: one
// that this configuration does without, or gives another port, but which goes on
// until this configuration is in force.
func explainPort(c *claimed, err error) error {
	port := c.claim.Config().ListenPort
	if port == 0 || !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	for _, other := range runningTunnels() {
		if other != c.claim.Tunnel() && other.ListenPort() == port {
			return fmt.Errorf("tunnel %s cannot have UDP port %d yet, because tunnel %s has it in the configuration that is in force; take it from that one with a reload before, keep the name %[3]s, or restart Caddy: %w", c.name, port, other.Name(), syscall.EADDRINUSE)
		}
	}
	return err
}

// exitTimeout bounds how long Stop waits for relayed connections that it has
// reset.
const exitTimeout = 2 * time.Second

// Stop takes nothing down, since connections of this configuration may still
// need the tunnels, which are released in Cleanup. Only at the end of the
// process it ends what layer4 relays, so that both ends hear of it while the
// tunnels still carry that: what has not come to its own end within the grace
// period of the http app is reset. Without a grace period, which to HTTP means
// for ever, nothing is waited for: a session may last for days.
func (a *App) Stop() error {
	if !caddy.Exiting() {
		return nil
	}
	if grace, relayed := a.gracePeriod(), relay.Streams.Len(); grace > 0 && relayed > 0 {
		a.logger.Info("waiting for relayed connections to end", zap.Int("count", relayed), zap.Duration("grace_period", grace))
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		_ = relay.Streams.Wait(ctx)
	}
	ctx, cancel := context.WithTimeout(context.Background(), exitTimeout)
	defer cancel()
	if err := relay.End(ctx, relay.Shutdown); err != nil {
		a.logger.Warn("ending relayed connections", zap.Error(err))
	}
	return nil
}

// gracePeriod is the http app's, in the Caddyfile the global option
// grace_period; 0 if there is none.
func (a *App) gracePeriod() time.Duration {
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return 0
	}
	if http, ok := app.(*caddyhttp.App); ok {
		return time.Duration(http.GracePeriod)
	}
	return 0
}

// Cleanup gives up the claims on the tunnels. A tunnel that no configuration
// claims any more goes down.
func (a *App) Cleanup() error {
	if a.ended != nil {
		close(a.ended)
	}
	var errs []error
	if a.layer4 != nil {
		if err := closeLeftOpen(a.layer4); err != nil {
			errs = append(errs, fmt.Errorf("closing what layer4 has left open: %w", err))
		}
	}
	for name, c := range a.tunnels {
		if err := c.claim.Release(); err != nil {
			errs = append(errs, fmt.Errorf("releasing tunnel %s: %w", name, err))
		}
		if _, err := pool.Delete(name); err != nil {
			errs = append(errs, fmt.Errorf("closing tunnel %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// uniquePeers makes sure that a peer's name says which tunnel it is in.
func uniquePeers(tunnels map[string]*Tunnel) error {
	owner := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(tunnels)) {
		if tunnels[name] == nil {
			continue
		}
		for peer := range tunnels[name].Peers {
			if other, ok := owner[peer]; ok {
				return tunnels[name].Origins.At(fmt.Errorf("tunnels %s and %s both have a peer %s; an upstream names its peer, so peer names must be unique: rename one, in a wg_quick file with a comment # Name = … above its [Peer]", other, name, peer), "peer "+peer)
			}
			owner[peer] = name
		}
	}
	return nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
