package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// Explain turns the error of a dial to remote into what a person can act on.
// The error stays wrapped inside.
func (c *Claim) Explain(ctx context.Context, remote netip.AddrPort, err error) error {
	return c.explain(ctx, netip.AddrPort{}, remote, err)
}

// explain is Explain for a dial from local, which is the zero value for the
// tunnel's own address.
func (c *Claim) explain(ctx context.Context, local, remote netip.AddrPort, err error) error {
	name := c.tunnel.name
	peer, _ := c.config.PeerFor(remote.Addr())
	if peer == nil {
		return err
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s refused the connection: nothing listens there, or a firewall there rejects it: %w", remote, err)
	case errors.Is(err, netstack.ErrNoAddress):
		return fmt.Errorf("tunnel %s has no address of the family of %s; add one to its address line: %w", name, remote.Addr(), err)
	case local.IsValid() && (errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL)):
		return fmt.Errorf("%s is in use towards %s: %w", local, remote, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("tunnel %s has no port left towards %s: those that there are have connections, or had one within the last minute; where /proc/sys is read-only there are fewer than could be (see Environments in Homeward's README): %w", name, remote, err)
	case errors.Is(ctx.Err(), context.Canceled):
		return err
	}
	for _, status := range c.tunnel.Status() {
		if status.PublicKey != peer.PublicKey {
			continue
		}
		return c.describeSilence(status, local, remote, err)
	}
	return err
}

// quietAfter is from when a peer that was up is rather away than its program
// is: a peer behind NAT is customarily heard every 25 s.
const quietAfter = 30 * time.Second

// restartGrace is how long a home may take to notice that its relay has been
// restarted: until its session ends (whitepaper, section 6.1).
const restartGrace = 150 * time.Second

func (c *Claim) describeSilence(status PeerStatus, local, remote netip.AddrPort, err error) error {
	age := func(t time.Time) time.Duration { return time.Since(t).Round(time.Second) }
	switch {
	case status.LastHandshake.IsZero() && !status.Endpoint.IsValid() && c.tunnel.upFor() < restartGrace:
		return fmt.Errorf("peer %s has not called since the tunnel came up %s ago, which an idle peer may take two minutes to do; if it stays away, check that it runs, that its endpoint is this machine's UDP port %d, that no firewall closes that port, and that both ends have each other's public key: %w", status.Name, c.tunnel.upFor().Round(time.Second), c.tunnel.ListenPort(), err)
	case status.LastHandshake.IsZero() && !status.Endpoint.IsValid():
		return fmt.Errorf("peer %s has never been heard of since the tunnel came up and has no endpoint to call; check that it runs, that its endpoint is this machine's UDP port %d, that no firewall closes that port, and that both ends have each other's public key: %w", status.Name, c.tunnel.ListenPort(), err)
	case status.LastHandshake.IsZero():
		return fmt.Errorf("peer %s has not answered at %s since the tunnel came up; check that it runs and that both ends have each other's public key: %w", status.Name, status.Endpoint, err)
	case age(status.LastReceived) > quietAfter:
		return fmt.Errorf("peer %s is silent: last heard of %s ago, from %s; check that it runs and is online (last handshake %s ago): %w", status.Name, age(status.LastReceived), status.Endpoint, age(status.LastHandshake), err)
	}
	check := "that the peer's allowed IPs for this end contain the tunnel's address"
	if local.IsValid() {
		family := "-4"
		if remote.Addr().Is6() {
			family = "-6"
		}
		check = fmt.Sprintf("that the peer lets this end use the address of client %s and answers it through the tunnel: its allowed IPs for this end must be 0.0.0.0/0, ::/0 and, with kernel WireGuard, its interface needs `Table = 51820` and `PostUp = ip %s rule add from %s table 51820`", local.Addr(), family, remote.Addr())
	}
	return fmt.Errorf("peer %s is up (last heard of %s ago, last handshake %s ago), but %s does not answer; check the program there, its firewall, and %s: %w", status.Name, age(status.LastReceived), age(status.LastHandshake), remote, check, err)
}
