// Package wgtransport is the way from Caddy's reverse_proxy through a tunnel:
// the module `http.reverse_proxy.transport.wireguard`.
package wgtransport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/wireguard"
)

func init() { caddy.RegisterModule(new(Transport)) }

// Transport lets reverse_proxy reach its upstreams through a WireGuard tunnel
// of the `wireguard` app. It speaks HTTP/1.1, HTTP/2, HTTP/2 without TLS (h2c)
// and HTTP/3, and opens no connection that does not go through a tunnel: the
// variables HTTP_PROXY and HTTPS_PROXY do not apply to it.
//
// An upstream is `host:port`, where the host is the name of a peer, an IP
// address in a peer's allowed IPs, or a name that the tunnel's resolvers know.
//
// It takes the options of Caddy's own `http` transport. Those that make no
// sense inside a tunnel are refused: `resolver` (names are looked up by the
// tunnel's `resolvers`), `local_address` (the tunnel's `address` is the
// source), `dial_fallback_delay` (an upstream's addresses are tried in order,
// those of the client's family first), `network_proxy` and
// `forward_proxy_url`. Of the others these differ:
//
//   - The client's Host is sent to TLS upstreams too, so that the upstream's
//     absolute links and redirects are right. (Caddy's transport sends the
//     upstream's own address there.) Another Host is set in the proxy's
//     headers, by `header_up Host` in the Caddyfile.
//   - Without `tls.server_name`, an upstream that is an IP address or has no
//     dot in its name, as peers' names have none, is verified for the host
//     that the request asks for, and is told that name by SNI. Any other
//     upstream is verified for its own name. An active health check asks for
//     no host by itself: give its headers a Host. Connections are pooled by
//     that name: a request never travels on a connection whose certificate
//     was verified for another. So `max_conns_per_host` and the numbers of
//     idle connections count for each name. Passive health checks count a
//     name that the upstream has no certificate for as a failure, so a site
//     that serves names of a wildcard should not combine them with it.
//   - `tls.handshake_timeout` is 10s by default, not unlimited.
//   - `keep_alive.probe_interval` also is how long home may be silent while data
//     waits to be acknowledged before a TCP connection ends, how long an HTTP/2
//     connection may be silent before it is probed by a ping, and how often an
//     HTTP/3 connection is (there the default is 10s). So a request that is
//     sent on a pooled connection to a home that has gone does not wait for
//     ever. A home that answers is waited for, even if its program takes
//     nothing for hours, as when it pauses an upload; but TCP asks such a home
//     ever more rarely, every two minutes in the end, and it must have asked
//     three times before a home that goes then is given up.
//   - With the version "3" alone, HTTP/3 is spoken over a UDP socket inside
//     the tunnel; requests that ask for an upgrade, such as WebSockets, which
//     HTTP/3 does not have, go to the same address by HTTP/1.1 over TLS. The
//     options that do not exist in HTTP/3 are refused.
//   - The PROXY protocol header of an active health check says that the
//     connection is the relay's own: LOCAL in v2, UNKNOWN in v1.
type Transport struct {
	// The name of the tunnel to use. Default: the tunnel that has the
	// upstream's peer or covers its address; it must be given only where
	// several do.
	Tunnel string `json:"tunnel,omitempty"`

	reverseproxy.HTTPTransport

	// Public keys of the upstreams' certificates, each as sha256// and the SHA-256 of its
	// SubjectPublicKeyInfo in base64, which curl's --pinnedpubkey takes too. A certificate
	// with one of them is right, whoever has issued it, whatever its names are and however
	// old it is, and no other one is. For a home that made its certificate itself, whose
	// key the log then proposes. It turns TLS on, as an object `tls` does. Default: none,
	// certificates are verified by their issuer, name and time.
	TLSPin []string `json:"tls_pin,omitempty"`

	// Where in a Caddyfile the transport stood, for error messages.
	Origins wireguard.Origins `json:"origins,omitempty"`

	tunnels tunnels
	tls     *tls.Config
	pools   *pools
	sockets *packetSockets
	logger  *zap.Logger
}

// tunnels is what the transport needs of the wireguard app.
type tunnels interface {
	Check(host, tunnel string) error
	Dial(ctx context.Context, network, address string, options wireguard.DialOptions) (net.Conn, wireguard.Route, error)
	Routes(ctx context.Context, address string, options wireguard.DialOptions) ([]wireguard.Route, error)
	ListenPacket(ctx context.Context, tunnel string) (net.PacketConn, error)
	Explain(ctx context.Context, route wireguard.Route, err error) error
}

const (
	// originTransport is the transport's own place in its Origins.
	originTransport = "transport"

	// defaultDialTimeout is that of Caddy's http transport. It is short so
	// that a retry on another upstream comes soon; it covers the wait for a
	// tunnel's first handshake.
	defaultDialTimeout = 3 * time.Second

	// defaultHandshakeTimeout is that of http.DefaultTransport. A home that
	// accepts a connection and then says nothing must not hold a client
	// for ever.
	defaultHandshakeTimeout = 10 * time.Second

	// The defaults of Caddy's http transport for keep-alive.
	defaultProbeInterval       = 30 * time.Second
	defaultIdleConnTimeout     = 2 * time.Minute
	defaultMaxIdleConnsPerHost = 32
)

// CaddyModule returns the Caddy module information.
func (*Transport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.wireguard",
		New: func() caddy.Module { return new(Transport) },
	}
}

// Provision checks the options and finds the tunnels. It opens no socket.
func (t *Transport) Provision(ctx caddy.Context) error {
	app, err := wireguard.FromContext(ctx)
	if errors.Is(err, caddy.ErrNotConfigured) {
		return t.Origins.At(err, originTransport)
	}
	if err != nil {
		return err // which names its own line
	}
	return t.Origins.At(t.provision(ctx, app), originTransport)
}

func (t *Transport) provision(ctx caddy.Context, tunnels tunnels) error {
	t.logger = ctx.Logger()
	t.tunnels = tunnels
	t.enableTLSForPins()
	if err := t.checkOptions(); err != nil {
		return err
	}
	t.setDefaults()
	if err := t.checkUpstreams(ctx); err != nil {
		return err
	}
	if t.TLS != nil {
		config, err := t.TLS.MakeTLSClientConfig(ctx)
		if err != nil {
			return fmt.Errorf("making the TLS configuration: %w", err)
		}
		if config == nil {
			config = new(tls.Config)
		}
		config.ServerName = "" // each pool has its own
		t.pinned(config)
		if t.TLS.InsecureSkipVerify {
			t.logger.Warn("not verifying upstreams' certificates: whoever answers in the tunnel is believed; tls_pin or tls_trust_pool trusts the right one only")
		}
		t.tls = config
	}
	t.sockets = newPacketSockets(tunnels)
	t.pools = newPools(t.newPool, t.sockets.close, time.Duration(t.KeepAlive.IdleConnTimeout))
	return nil
}

func (t *Transport) setDefaults() {
	if len(t.Versions) == 0 {
		t.Versions = []string{"1.1", "2"}
	}
	if t.DialTimeout == 0 {
		t.DialTimeout = caddy.Duration(defaultDialTimeout)
	}
	if t.TLS != nil && t.TLS.HandshakeTimeout == 0 {
		t.TLS.HandshakeTimeout = caddy.Duration(defaultHandshakeTimeout)
	}
	if t.KeepAlive == nil {
		t.KeepAlive = new(reverseproxy.KeepAlive)
	}
	if t.KeepAlive.ProbeInterval == 0 && !t.http3() {
		t.KeepAlive.ProbeInterval = caddy.Duration(defaultProbeInterval)
	}
	if t.KeepAlive.IdleConnTimeout == 0 {
		t.KeepAlive.IdleConnTimeout = caddy.Duration(defaultIdleConnTimeout)
	}
	if t.KeepAlive.MaxIdleConnsPerHost == 0 {
		t.KeepAlive.MaxIdleConnsPerHost = defaultMaxIdleConnsPerHost
	}
}

// Cleanup closes the connections that no request uses. Those in use are closed
// when their requests are done: a reload interrupts none.
func (t *Transport) Cleanup() error {
	if t.pools != nil {
		t.pools.close()
	}
	return nil
}

// RequestHeaderOps returns nil: a request keeps the client's Host, whether the
// upstream speaks TLS or not. It stands in the way of the embedded transport's
// method, which replaces the Host by the upstream's address.
func (*Transport) RequestHeaderOps() *headers.HeaderOps { return nil }

// http3 says whether the upstreams speak HTTP/3.
func (t *Transport) http3() bool { return len(t.Versions) == 1 && t.Versions[0] == "3" }

// Interface guards
var (
	_ caddy.Provisioner                                = (*Transport)(nil)
	_ caddy.CleanerUpper                               = (*Transport)(nil)
	_ caddyfile.Unmarshaler                            = (*Transport)(nil)
	_ http.RoundTripper                                = (*Transport)(nil)
	_ reverseproxy.TLSTransport                        = (*Transport)(nil)
	_ reverseproxy.H2CTransport                        = (*Transport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*Transport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*Transport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*Transport)(nil)
	_ tunnels                                          = (*wireguard.App)(nil)
)
