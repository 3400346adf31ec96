package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/homeward-relay/homeward/modules/internal/relay"
)

const (
	networkTCP = "wireguard"
	networkUDP = "wireguard+udp"
)

func init() {
	caddy.RegisterNetwork(networkTCP, listen)
	caddy.RegisterNetwork(networkUDP, listen)
	caddyhttp.RegisterNetworkHTTP3(networkTCP, networkUDP)
}

// listen opens a listener of network `wireguard/<tunnel>:<port>` or
// `wireguard+udp/<tunnel>:<port>`: on all addresses that this end has inside
// the tunnel. It implements caddy.ListenerFunc. Of the configuration it heeds the
// keepalive, whose defaults are those of relayed connections.
func listen(ctx context.Context, network, host, portRange string, portOffset uint, config net.ListenConfig) (any, error) {
	address := caddy.JoinNetworkAddress(network, host, portRange)
	parsed, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		return nil, err
	}
	port := parsed.StartPort + portOffset
	if port == 0 || port > 65535 {
		return nil, fmt.Errorf("listening on %s: a listener inside a tunnel needs a port from 1 to 65535", address)
	}
	c, err := claimOf(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}

	key := listenerKey{network: network, tunnel: host, port: uint16(port)}
	local := netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port))
	switch network {
	case networkTCP:
		socket, release, err := c.acquire(key, func() (sharedSocket, error) {
			listener, err := c.claim.ListenTCP(local)
			if err != nil {
				return nil, explainPort(c, err)
			}
			return newSharedListener(listener), nil
		})
		if err != nil {
			return nil, fmt.Errorf("listening on %s: %w", address, err)
		}
		return socket.(*sharedListener).use(release, keepAlive(config)), nil
	case networkUDP:
		socket, release, err := c.acquire(key, func() (sharedSocket, error) {
			conn, err := c.claim.ListenUDP(local)
			if err != nil {
				return nil, explainPort(c, err)
			}
			return newSharedPacketConn(conn), nil
		})
		if err != nil {
			return nil, fmt.Errorf("listening on %s: %w", address, err)
		}
		return socket.(*sharedPacketConn).use(release), nil
	}
	return nil, fmt.Errorf("listening on %s: the networks inside a tunnel are %s and %s", address, networkTCP, networkUDP)
}

// acquire is acquire for one configuration, in which only one server can have a port.
func (c *claimed) acquire(key listenerKey, open func() (sharedSocket, error)) (sharedSocket, func() error, error) {
	if _, taken := c.listening.LoadOrStore(key, true); taken {
		return nil, nil, errors.New("this configuration already has a server there, and who comes would get one of the two by chance; give one of them another port, or remove it")
	}
	socket, release, err := acquire(key, open)
	if err != nil {
		c.listening.Delete(key)
		return nil, nil, err
	}
	return socket, func() error {
		c.listening.Delete(key)
		return release()
	}, nil
}

// keepAlive is the keepalive of accepted connections: what a server's options say
// (keepalive_interval and its like), and where they say nothing relay.KeepAlive.
func keepAlive(config net.ListenConfig) net.KeepAliveConfig {
	k := config.KeepAliveConfig
	if config.KeepAlive < 0 || !k.Enable && k.Interval < 0 {
		return net.KeepAliveConfig{}
	}
	k.Enable = true
	if k.Idle == 0 {
		k.Idle = relay.KeepAlive.Idle
	}
	if k.Interval == 0 {
		k.Interval = relay.KeepAlive.Interval
	}
	if k.Count == 0 {
		k.Count = relay.KeepAlive.Count
	}
	return k
}

// claimOf returns the claim that the configuration which ctx belongs to has
// on a tunnel.
func claimOf(ctx context.Context, name string) (*claimed, error) {
	config, ok := ctx.(caddy.Context)
	if !ok {
		return nil, errors.New("only sites and layer4 servers can listen inside a tunnel")
	}
	app, err := FromContext(config)
	if err != nil {
		return nil, err
	}
	c, ok := app.tunnels[name]
	if !ok {
		return nil, app.noTunnel(name)
	}
	return c, nil
}
