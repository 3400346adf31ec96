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
	case errors.Is(ctx.Err(), context.Canceled):
		return err
	}
	for _, status := range c.tunnel.Status() {
		if status.PublicKey != peer.PublicKey {
			continue
		}
		switch age := time.Since(status.LastHandshake).Round(time.Second); {
		case status.LastHandshake.IsZero() && !status.Endpoint.IsValid():
			return fmt.Errorf("peer %s has never been heard of since the tunnel came up and has no endpoint to call; check that it runs, that its endpoint is this machine's UDP port %d, and that no firewall closes that port: %w", peer.Name, c.tunnel.ListenPort(), err)
		case status.LastHandshake.IsZero():
			return fmt.Errorf("peer %s has not answered at %s since the tunnel came up; check that it runs and that both ends have each other's public key: %w", peer.Name, status.Endpoint, err)
		case age > sessionMax:
			return fmt.Errorf("peer %s is silent: last handshake %s ago, from %s: %w", peer.Name, age, status.Endpoint, err)
		default:
			return fmt.Errorf("peer %s is up (last handshake %s ago), but %s does not answer; check the program there, its firewall, and that the peer's allowed IPs for this end contain the tunnel's address: %w", peer.Name, age, remote, err)
		}
	}
	return err
}
