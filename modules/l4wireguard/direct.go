package l4wireguard

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/homeward-relay/homeward/modules/wireguard"
)

// errDirectTunnel and errDirectTransparent are what direct cannot be together with.
var (
	errDirectTunnel      = errors.New("direct and tunnel exclude each other: direct dials from this host, past all tunnels; remove one of them")
	errDirectTransparent = errors.New("direct and transparent exclude each other: only inside a tunnel can a connection have the client's address; remove one of them, or tell the program with proxy_protocol")
)

// checkDirect refuses what direct would have to ignore.
func (h *Handler) checkDirect() error {
	switch {
	case h.Direct && h.Tunnel != "":
		return errDirectTunnel
	case h.Direct && h.Transparent:
		return errDirectTransparent
	}
	return nil
}

// host dials from this host.
type host struct{}

// Dial implements dialer. The options are all about tunnels.
func (host) Dial(ctx context.Context, network, address string, _ wireguard.DialOptions) (net.Conn, wireguard.Route, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, wireguard.Route{}, err
	}
	return conn, wireguard.Route{Address: addrPort(conn.RemoteAddr()), Source: addrPort(conn.LocalAddr())}, nil
}

// Source implements dialer: the client's address is never the source.
func (host) Source(wireguard.Route, wireguard.DialOptions) (netip.AddrPort, string) {
	return netip.AddrPort{}, ""
}

func addrPort(addr net.Addr) netip.AddrPort {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// Interface guard
var _ dialer = host{}
