package l4wireguard

import (
	"net/netip"

	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/wireguard"
)

// noAnswers is what to look at when nothing came back to a client whose address
// a flow had.
const noAnswers = "no answer came: with transparent, home must answer clients through the tunnel (AllowedIPs = 0.0.0.0/0, ::/0 for this end and, with kernel WireGuard, a Table and a rule from the address that is dialed), and a UDP program that is bound to no address needs the connmark rules in the README"

// dialOptions say on whose behalf an upstream is dialed.
func (h *Handler) dialOptions(cx *layer4.Connection) wireguard.DialOptions {
	client := clientAddr(cx)
	return wireguard.DialOptions{
		Tunnel:      h.Tunnel,
		Client:      client.Addr(),
		ClientPort:  client.Port(),
		Transparent: h.Transparent,
	}
}

// keepFlow says whether a flow that an earlier configuration dialed has the
// source that this one would give it.
func (h *Handler) keepFlow(cx *layer4.Connection) func(any) bool {
	options := h.dialOptions(cx)
	return func(dialed any) bool {
		reached, ok := dialed.(way)
		if !ok {
			return true
		}
		source, _ := h.app.Source(reached.route, options)
		return source.IsValid() == reached.transparent
	}
}

// warnTransparent says what can be seen of an upstream before any client is
// there.
func (h *Handler) warnTransparent(app *wireguard.App, u upstream) {
	ipv4, ipv6 := h.hasClients(netip.IPv4Unspecified()), h.hasClients(netip.IPv6Unspecified())
	for _, warning := range app.CheckTransparent(u.host, h.Tunnel, ipv4, ipv6) {
		h.logger.Warn("transparent will not serve all clients of an upstream", zap.String("upstream", u.configured), zap.String("reason", warning))
	}
}

// hasClients reports whether a layer4 server can have clients of the family of
// unspecified, which is that family's unspecified address. Inside an http
// server's listener wrapper nothing is known of the clients.
func (h *Handler) hasClients(unspecified netip.Addr) bool {
	for _, listener := range h.listeners {
		host, err := netip.ParseAddr(listener.Host)
		// A socket for all IPv6 addresses customarily takes IPv4 too.
		if err != nil || host == netip.IPv6Unspecified() || host.Is4() == unspecified.Is4() {
			return true
		}
	}
	return len(h.listeners) == 0
}
