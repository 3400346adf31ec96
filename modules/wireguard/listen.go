package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/mholt/caddy-l4/layer4"

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

// Validate refuses servers of the http and layer4 apps that could not listen inside a
// tunnel, so that `caddy validate`, which starts nothing, does. The apps may be provisioned
// before this one, after it, or just now, by which it is itself: they have their addresses
// in any case.
func (a *App) Validate() error {
	taken := make(listenerKeys)
	// What is wrong with the other apps themselves Caddy says.
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		httpApp := app.(*caddyhttp.App)
		servers := httpApp.Servers
		for _, name := range slices.Sorted(maps.Keys(servers)) {
			// One without HTTP/1.1 may do without TCP; listen tells, when all start.
			server := servers[name]
			isTCP := server.ListenProtocols == nil && (len(server.Protocols) == 0 || slices.Contains(server.Protocols, "h1"))
			isHTTPS := len(server.TLSConnPolicies) > 0 || slices.ContainsFunc(server.Listen, func(address string) bool {
				parsed, err := caddy.ParseNetworkAddress(address)
				return err == nil && parsed.StartPort == uint(cmp.Or(httpApp.HTTPSPort, caddyhttp.DefaultHTTPSPort))
			})
			isHTTP3 := isHTTPS && server.ListenProtocols == nil && (len(server.Protocols) == 0 || slices.Contains(server.Protocols, "h3"))
			if err := a.checkListen(server.Listen, isTCP, isHTTP3, taken); err != nil {
				return fmt.Errorf("http server %s: %w", name, err)
			}
		}
	}
	if app, err := a.ctx.AppIfConfigured("layer4"); err == nil {
		servers := app.(*layer4.App).Servers
		for _, name := range slices.Sorted(maps.Keys(servers)) {
			if err := a.checkListen(servers[name].Listen, true, false, taken); err != nil {
				return fmt.Errorf("layer4 server %s: %w", name, err)
			}
		}
	}
	return nil
}

// checkListen says whether a server can listen at those of its addresses that are inside
// tunnels. If it is known to use them all, it takes them, and with HTTP/3 those for UDP.
func (a *App) checkListen(addresses []string, uses, isHTTP3 bool, taken listenerKeys) error {
	repl := caddy.NewReplacer()
	for _, text := range addresses {
		// Who checks a configuration need not have the service's environment.
		text, err := repl.ReplaceOrErr(text, true, true)
		if err != nil {
			continue
		}
		address, err := caddy.ParseNetworkAddress(text)
		if err != nil || address.Network != networkTCP && address.Network != networkUDP {
			continue
		}
		if _, ok := a.tunnels[address.Host]; !ok {
			return fmt.Errorf("listening on %s: %w", address, a.noTunnel(address.Host))
		}
		for offset := range address.PortRangeSize() {
			key, err := keyOf(address, offset)
			if err == nil && uses {
				err = taken.add(key)
			}
			if err == nil && isHTTP3 && key.network == networkTCP {
				key.network = networkUDP
				err = taken.add(key)
			}
			if err != nil {
				return fmt.Errorf("listening on %s: %w", address.At(offset), err)
			}
		}
	}
	return nil
}

// listenerKeys are the ports that servers have so far.
type listenerKeys map[listenerKey]bool

func (keys listenerKeys) add(key listenerKey) error {
	if keys[key] {
		return errTaken
	}
	keys[key] = true
	return nil
}

// keyOf is the key of a port of an address inside a tunnel.
func keyOf(address caddy.NetworkAddress, offset uint) (listenerKey, error) {
	port := address.StartPort + offset
	if port == 0 || port > 65535 {
		return listenerKey{}, errors.New("a listener inside a tunnel needs a port from 1 to 65535")
	}
	return listenerKey{network: address.Network, tunnel: address.Host, port: uint16(port)}, nil
}

// errTaken refuses a second server at a port.
var errTaken = errors.New("this configuration already has a server there, and who comes would get one of the two by chance; give one of them another port, or remove it (for sites in a tunnel Caddy adds one at port 80, which redirects to HTTPS, unless the global options say auto_https disable_redirects)")

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
	key, err := keyOf(parsed, portOffset)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	c, err := claimOf(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}

	local := netip.AddrPortFrom(netip.IPv6Unspecified(), key.port)
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
		return nil, nil, errTaken
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
