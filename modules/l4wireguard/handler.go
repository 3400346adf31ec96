// Package l4wireguard is the layer-4 handler that sends connections and
// datagrams to upstreams inside a WireGuard tunnel, or out of one, without an
// interface, a route or any privilege on this host.
package l4wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/modules/wireguard"
)

func init() { caddy.RegisterModule(new(Handler)) }

const (
	defaultDialTimeout = 5 * time.Second

	// defaultIdleUDP is what RFC 4787, section 4.3 asks of a NAT as the least.
	defaultIdleUDP = 2 * time.Minute

	// endTimeout is how long Cleanup waits at the end of the process for the
	// stragglers to be reset.
	endTimeout = 2 * time.Second
)

// Handler relays connections to upstreams inside a tunnel. It is terminal: no
// handler after it sees the connection.
//
// TCP connections are relayed with FIN as FIN, by half where a side closes by
// half, and with RST for everything else; a client whose upstream cannot be
// reached, or vanishes, gets RST, and so do all when this process is killed. UDP
// clients get a flow each, which ends after an idle timeout and which a
// configuration reload does not interrupt.
//
// This process relays at most 16384 TCP connections and 2048 flows at a time, all
// handlers together; of connections fewer where it may open fewer than some 36,000
// files. A connection for which there is no room is reset, datagrams are dropped.
//
// What a client's TCP has been told is taken, and the upstream has not got, is
// lost when this process or the upstream is. However long the upstream takes
// nothing, that is at most what the buffers of one connection hold: the receive
// buffer of the client's socket, which the kernel enlarges up to the last number of
// net.ipv4.tcp_rmem; 128 KiB on the way; and the send buffer towards the upstream,
// up to the last number of net.ipv4.tcp_wmem, or 6 MiB with gVisor's stack.
//
// Each connection and each flow writes one line to the log
// `layer4.handlers.wireguard.connection` when it ends. Of those that strangers can
// cause without end, which are connections that no upstream took and flows that had
// no answer, there are ten of a kind at once and then one a second; `suppressed`
// says how many were left out before.
type Handler struct {
	// Upstreams are the addresses to relay to, in order of preference: the
	// first that answers gets the connection. Each is a `host:port`; the host
	// is the name of a peer, an IP address, or a name that the tunnel's
	// resolvers know. With a network in front, as in `udp/home:53`, an upstream
	// serves only clients of that network. A port range, as in
	// `home:7000-7010`, has the size of the listener's and maps by offset.
	// Placeholders are allowed and are evaluated for each connection.
	Upstreams []string `json:"upstreams,omitempty"`

	// Tunnel names the tunnel to go through. It is only needed where several
	// tunnels have peers with the upstream's address; by default the tunnel
	// follows from the address.
	Tunnel string `json:"tunnel,omitempty"`

	// Direct dials the upstreams from this host, as any program does, and not
	// through a tunnel: for what comes out of one, as with a layer4 server on
	// `wireguard/wg0:22` at home whose upstream is `127.0.0.1:22`. Names are
	// those that the host knows. By default upstreams are inside a tunnel.
	Direct bool `json:"direct,omitempty"`

	// Transparent gives the connection inside the tunnel the client's own
	// address as its source, and the client's port if that is free, so that
	// every program at home sees who it talks to. Home must let this end use
	// those addresses and answer them through the tunnel: the relay's
	// AllowedIPs there are `0.0.0.0/0, ::/0`, and with kernel WireGuard the
	// interface has a `Table` of its own and an `ip rule from` its address.
	//
	// The tunnel's own address is used, and the connection's log line says why,
	// where the upstream has no address of the client's family, and where the
	// client's is loopback, link-local or multicast, is in one of the tunnel's
	// own networks, or is in the allowed IPs of one of its peers (other than
	// default routes and what else is wider than an IPv4 /8 or an IPv6 /16).
	//
	// A reload that changes the source which a UDP flow is to have ends the
	// flow; the client's next datagram begins one that has it.
	Transparent bool `json:"transparent,omitempty"`

	// ProxyProtocol, `v1` or `v2`, puts a PROXY protocol header with the
	// client's address before what the client sends: once for a TCP connection,
	// before every datagram for UDP, which needs `v2`. By default there is none.
	// With transparent, the header is there as well: it names clients whose
	// address the connection cannot have.
	ProxyProtocol string `json:"proxy_protocol,omitempty"`

	// DialTimeout bounds the dial of each upstream, the wait for the tunnel's
	// handshake included. Default: 5s.
	DialTimeout caddy.Duration `json:"dial_timeout,omitempty"`

	// IdleTimeout ends a connection after this long without a byte either way.
	// Default: none for TCP, 2m for UDP.
	IdleTimeout caddy.Duration `json:"idle_timeout,omitempty"`

	// Origins say where in a Caddyfile each upstream and the option
	// proxy_protocol stood, for error messages.
	Origins wireguard.Origins `json:"origins,omitempty"`

	app          dialer
	upstreams    []upstream
	listeners    []caddy.NetworkAddress
	proxyVersion byte

	logger      *zap.Logger
	connections *zap.Logger
	lines       limiters

	// dialing ends when the process does: a reload lets dials go on.
	dialing     context.Context
	stopDialing context.CancelFunc

	// running ends in Cleanup, when the servers that call this handler have
	// been stopped.
	running context.Context
	stop    context.CancelFunc
}

// dialer is what the handler needs of the wireguard app, or of the host.
type dialer interface {
	Dial(ctx context.Context, network, address string, options wireguard.DialOptions) (net.Conn, wireguard.Route, error)
	Source(route wireguard.Route, options wireguard.DialOptions) (source netip.AddrPort, reason string)
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.handlers.wireguard",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler. It opens no socket.
func (h *Handler) Provision(ctx caddy.Context) error {
	var app *wireguard.App // nil if direct
	var err error
	if h.Direct {
		h.app = host{}
	} else {
		app, err = wireguard.FromContext(ctx)
		if errors.Is(err, caddy.ErrNotConfigured) && len(h.Upstreams) > 0 {
			return h.Origins.At(err, h.Upstreams[0])
		}
		if err != nil {
			return err
		}
		h.app = app
	}
	h.logger = ctx.Logger(h)
	h.connections = h.logger.Named("connection")
	h.dialing, h.stopDialing = context.WithCancel(context.Background())
	h.running, h.stop = context.WithCancel(context.Background())

	repl := caddy.NewReplacer()
	h.Tunnel = repl.ReplaceKnown(h.Tunnel, "")
	if h.listeners, err = listeners(ctx); err != nil {
		return err
	}
	if h.proxyVersion, err = proxyVersion(repl.ReplaceKnown(h.ProxyProtocol, "")); err != nil {
		return h.Origins.At(err, "proxy_protocol")
	}
	for _, configured := range h.Upstreams {
		u, err := h.provisionUpstream(app, repl, configured)
		if err != nil {
			return h.Origins.At(err, configured)
		}
		h.upstreams = append(h.upstreams, u)
	}
	return nil
}

// provisionUpstream parses and checks one upstream as far as that can be done
// without a connection.
func (h *Handler) provisionUpstream(app *wireguard.App, repl *caddy.Replacer, configured string) (upstream, error) {
	u, err := parseUpstream(repl.ReplaceKnown(configured, ""))
	if err != nil {
		return upstream{}, err
	}
	if u.dynamic {
		return u, nil
	}
	if err := u.checkRange(h.listeners); err != nil {
		return upstream{}, err
	}
	if u.network == "udp" && h.proxyVersion == 1 {
		return upstream{}, errProxyV1
	}
	if h.Direct {
		return u, nil
	}
	if err := app.Check(u.host, h.Tunnel); err != nil {
		return upstream{}, fmt.Errorf("upstream %s: %w", configured, err)
	}
	if h.Transparent {
		h.warnTransparent(app, u)
	}
	return u, nil
}

// Validate checks what Provision has not.
func (h *Handler) Validate() error {
	if len(h.Upstreams) == 0 {
		return errors.New("no upstreams: give the handler at least one address, such as home:22")
	}
	if err := h.checkDirect(); err != nil {
		return err
	}
	if h.DialTimeout < 0 {
		return errors.New("dial_timeout is negative: give a positive duration, or leave it out for 5s")
	}
	if h.IdleTimeout < 0 {
		return errors.New("idle_timeout is negative: give a positive duration, or leave it out for the default")
	}
	return nil
}

// Handle relays a connection until it ends, or the datagrams of a client for
// as long as the server has any.
func (h *Handler) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	if isDatagram(cx) {
		return h.handleDatagrams(cx)
	}
	return h.handleStream(cx)
}

// Cleanup is called after a reload, which live connections survive, at the end of
// the process, which they do not, and when a configuration has been refused.
func (h *Handler) Cleanup() error {
	if h.stop == nil {
		return nil
	}
	h.stop()
	relay.Flows.Orphan(h)
	if !caddy.Exiting() {
		return nil
	}

	// The wireguard app's Stop has ended what there was while every tunnel was
	// still up. These are the ones that were accepted since, before layer4's
	// Stop; for them the tunnel may be gone, as Cleanups run in no order.
	h.stopDialing()
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := relay.End(ctx, relay.Shutdown); err != nil {
		h.logger.Warn("ending connections", zap.Error(err))
	}
	return nil
}

func (h *Handler) dialTimeout() time.Duration {
	if h.DialTimeout > 0 {
		return time.Duration(h.DialTimeout)
	}
	return defaultDialTimeout
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Handler)(nil)
	_ caddy.Validator       = (*Handler)(nil)
	_ caddy.CleanerUpper    = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ layer4.NextHandler    = (*Handler)(nil)
)
