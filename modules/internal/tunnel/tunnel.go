package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// ErrDown means that a tunnel is used that no claim has brought up, or that
// is closed.
var ErrDown = errors.New("the tunnel is down")

// Tunnel is a WireGuard tunnel that several configurations, one after the
// other or for a moment side by side, have claims on. It is created down: no
// socket is open and no goroutine runs until a claim is prepared.
type Tunnel struct {
	name string

	mu     sync.Mutex
	claims []*Claim // oldest first; the first prepared one is in force
	live   *live    // nil while down
	closed bool

	sources udpSources
}

// New returns the tunnel called name, down.
func New(name string) *Tunnel {
	return &Tunnel{name: name}
}

// Name is the tunnel's name.
func (t *Tunnel) Name() string { return t.name }

// Claim states what a configuration wants of the tunnel. Nothing happens
// before the claim is prepared.
func (t *Tunnel) Claim(config *Config, logger *zap.Logger) *Claim {
	claim := &Claim{tunnel: t, config: config, logger: logger}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.claims = append(t.claims, claim)
	return claim
}

// Destruct closes the tunnel with everything in it. Its name is Caddy's, whose
// usage pools call it when the last reference is gone.
func (t *Tunnel) Destruct() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	return t.down()
}

// down closes the live tunnel, if there is one. t.mu is held.
func (t *Tunnel) down() error {
	l := t.live
	t.live = nil
	return l.close()
}

// stack returns the live tunnel's stack.
func (t *Tunnel) stack() (netstack.Stack, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		return nil, ErrDown
	}
	return t.live.stack, nil
}

// settle brings the live tunnel to what the claims say: the oldest prepared
// claim in force, with what younger prepared claims add. t.mu is held.
func (t *Tunnel) settle() error {
	var wanted *Config
	var logger *zap.Logger
	prepared := 0
	for _, claim := range t.claims {
		switch {
		case !claim.prepared:
			continue
		case wanted == nil:
			wanted, logger = claim.config, claim.logger
		default:
			wanted, logger = merge(wanted, claim.config), claim.logger
		}
		prepared++
	}
	if wanted == nil {
		return t.down()
	}
	if t.live == nil {
		if t.closed {
			return ErrDown
		}
		l, err := bringUp(t.name, wanted, logger)
		if err != nil {
			return err
		}
		t.live = l
		return nil
	}
	err := t.live.apply(wanted, logger)
	if prepared == 1 {
		// No other claim is left that a port was opened for ahead of time.
		err = errors.Join(err, t.live.bind.Discard())
	}
	return err
}

// Claim is one configuration's hold on a tunnel. It is made by Tunnel.Claim.
type Claim struct {
	tunnel *Tunnel
	config *Config
	logger *zap.Logger

	// guarded by tunnel.mu
	prepared bool
	released bool
}

// Prepare makes ready what the claim adds to what is live, or brings the
// tunnel up if it is down. Nothing live is changed or taken away: that comes
// when older claims are released. If it fails, the tunnel is as it was. It
// does nothing the second time.
func (c *Claim) Prepare() error {
	t := c.tunnel
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.prepared || c.released {
		return nil
	}
	if t.live != nil {
		if err := t.live.preparePort(c.config.ListenPort); err != nil {
			return err
		}
	}
	c.prepared = true
	if err := t.settle(); err != nil {
		c.prepared = false
		if t.live != nil {
			err = errors.Join(err, t.settle())
		}
		return err
	}
	return nil
}

// Release gives up the claim. If a younger claim is prepared, it comes into
// force, which is when what only the released one wanted is taken away. If
// the claim was the younger one, its preparation is undone. If it was the
// last prepared one, the tunnel goes down. It does nothing the second time.
func (c *Claim) Release() error {
	if c == nil {
		return nil
	}
	t := c.tunnel
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.released {
		return nil
	}
	c.released = true
	for i, claim := range t.claims {
		if claim == c {
			t.claims = append(t.claims[:i:i], t.claims[i+1:]...)
			break
		}
	}
	if !c.prepared {
		return nil
	}
	return t.settle()
}

// Config is the state that the claim wants.
func (c *Claim) Config() *Config { return c.config }

// Tunnel is the tunnel that the claim is on.
func (c *Claim) Tunnel() *Tunnel { return c.tunnel }

// StackKind is the kind of stack the live tunnel has, or "" if it is down.
func (t *Tunnel) StackKind() string {
	stack, err := t.stack()
	if err != nil {
		return ""
	}
	return stack.Kind()
}

// StackReason says in a few words why the live tunnel has the stack that it
// has, or is "" if it is down.
func (t *Tunnel) StackReason() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		return ""
	}
	return t.live.stackReason()
}

// Status returns what is known of the live tunnel's peers, in the order of
// the configuration. It is empty while the tunnel is down.
func (t *Tunnel) Status() []PeerStatus {
	t.mu.Lock()
	l := t.live
	t.mu.Unlock()
	if l == nil {
		return nil
	}
	return l.status()
}

// ListenPort is the UDP port that the live tunnel listens on, or 0 if it is
// down.
func (t *Tunnel) ListenPort() uint16 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		return 0
	}
	return t.live.port
}

// upFor is for how long the tunnel has been up.
func (t *Tunnel) upFor() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		return 0
	}
	return time.Since(t.live.since)
}

// DialTCP connects to remote through the tunnel, which it brings up if need
// be. It waits for the first handshake and the connection until ctx is done.
// Errors say which peer is silent since when, and wrap the stack's.
//
// The local address need not be the tunnel's: with that of a client the other
// end sees the client. One that is in use towards remote is an error that is
// syscall.EADDRINUSE or syscall.EADDRNOTAVAIL.
func (c *Claim) DialTCP(ctx context.Context, local, remote netip.AddrPort) (netstack.TCPConn, error) {
	stack, err := c.up()
	if err != nil {
		return nil, err
	}
	conn, err := stack.DialTCP(ctx, local, remote)
	if err != nil {
		return nil, c.explain(ctx, local, remote, err)
	}
	return conn, nil
}

// DialUDP returns a UDP socket that is connected to remote through the tunnel.
// Of the local address DialTCP's words hold.
func (c *Claim) DialUDP(ctx context.Context, local, remote netip.AddrPort) (netstack.UDPConn, error) {
	stack, err := c.up()
	if err != nil {
		return nil, err
	}
	var conn netstack.UDPConn
	if local.IsValid() {
		conn, err = c.tunnel.sources.dial(ctx, stack, local, remote)
	} else {
		conn, err = stack.DialUDP(ctx, local, remote)
	}
	if err != nil {
		return nil, c.explain(ctx, local, remote, err)
	}
	return conn, nil
}

// ListenTCP listens inside the tunnel.
func (c *Claim) ListenTCP(local netip.AddrPort) (netstack.TCPListener, error) {
	stack, err := c.up()
	if err != nil {
		return nil, err
	}
	listener, err := stack.ListenTCP(local)
	if err != nil {
		return nil, fmt.Errorf("listening on TCP %s inside tunnel %s: %w", local, c.tunnel.name, err)
	}
	return listener, nil
}

// ListenUDP opens an unconnected UDP socket inside the tunnel.
func (c *Claim) ListenUDP(local netip.AddrPort) (netstack.UDPConn, error) {
	stack, err := c.up()
	if err != nil {
		return nil, err
	}
	conn, err := stack.ListenUDP(local)
	if err != nil {
		return nil, fmt.Errorf("listening on UDP %s inside tunnel %s: %w", local, c.tunnel.name, err)
	}
	return conn, nil
}

// up brings the tunnel up, because apps start in any order and the first user
// may not be the app that owns the tunnels.
func (c *Claim) up() (netstack.Stack, error) {
	if err := c.Prepare(); err != nil {
		return nil, err
	}
	return c.tunnel.stack()
}
