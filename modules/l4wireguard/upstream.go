package l4wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
)

// upstream is an address to relay to.
type upstream struct {
	// configured is the address as it stands in the configuration, with the
	// placeholders that only a connection can fill.
	configured string

	// dynamic says that there are such placeholders: nothing below is set.
	dynamic bool

	network     string // "tcp", "udp", or empty for the listener's own
	host        string
	first, last uint16 // the same but for a port range
}

// parseUpstream parses [network/]host:port[-port].
func parseUpstream(configured string) (upstream, error) {
	if isDynamic(configured) {
		return upstream{configured: configured, dynamic: true}, nil
	}
	u := upstream{configured: configured}
	address := configured
	if network, rest, ok := strings.Cut(address, "/"); ok {
		if network != "tcp" && network != "udp" {
			return upstream{}, fmt.Errorf("upstream %q: the network is neither tcp nor udp: write udp/home:53, or home:53 for the listener's own", configured)
		}
		u.network, address = network, rest
	}

	host, ports, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return upstream{}, fmt.Errorf("upstream %q is no host:port: write it like home:22, 10.77.0.2:22 or [fd77::2]:22", configured)
	}
	if err := checkHost(host); err != nil {
		return upstream{}, fmt.Errorf("upstream %q: %w", configured, err)
	}
	u.host = host

	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	if u.first, err = parsePort(first); err == nil {
		u.last, err = parsePort(last)
	}
	if err != nil {
		return upstream{}, fmt.Errorf("upstream %q: %w", configured, err)
	}
	if u.last < u.first {
		return upstream{}, fmt.Errorf("upstream %q: the port range ends before it starts: write %s:%d-%d", configured, u.host, u.last, u.first)
	}
	return u, nil
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is no port: give a number from 1 to 65535", text)
	}
	return uint16(port), nil
}

// checkHost refuses what is neither an IP address nor can be a name.
func checkHost(host string) error {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return errors.New("addresses with a zone do not exist inside a tunnel: give one without %")
		}
		if addr.IsUnspecified() {
			return errors.New("the unspecified address is no upstream: give the address that the program at home listens on")
		}
		return nil
	}
	if len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	}) {
		return errors.New("the host is neither an IP address nor a name")
	}
	return nil
}

// size is the number of ports.
func (u upstream) size() uint { return uint(u.last-u.first) + 1 }

// checkRange makes sure that some listener has a range of the same size.
func (u upstream) checkRange(listeners []caddy.NetworkAddress) error {
	if u.size() == 1 {
		return nil
	}
	for _, listener := range listeners {
		if listener.PortRangeSize() == u.size() {
			return nil
		}
	}
	return fmt.Errorf("upstream %s has %d ports, and no layer4 server listens on a range of that size: let one listen on :%d-%d, say",
		u.configured, u.size(), u.first, u.last)
}

// address is the host:port for a client that has connected to local.
func (u upstream) address(local net.Addr, listeners []caddy.NetworkAddress) (string, error) {
	port := uint(u.first)
	if u.size() > 1 {
		offset, err := u.offset(local, listeners)
		if err != nil {
			return "", err
		}
		port += offset
	}
	return net.JoinHostPort(u.host, strconv.FormatUint(uint64(port), 10)), nil
}

// offset is local's place in the listener's port range.
func (u upstream) offset(local net.Addr, listeners []caddy.NetworkAddress) (uint, error) {
	at, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return 0, fmt.Errorf("upstream %s: a listener without ports has no place in a port range: %w", u.configured, err)
	}
	port := uint(at.Port())
	for _, listener := range listeners {
		if listener.PortRangeSize() != u.size() || port < listener.StartPort || port > listener.EndPort {
			continue
		}
		if host, err := netip.ParseAddr(listener.Host); err == nil && !host.IsUnspecified() && host.Unmap() != at.Addr().Unmap() {
			continue
		}
		return port - listener.StartPort, nil
	}
	return 0, fmt.Errorf("upstream %s: no layer4 server has a port range of this size with port %d in it", u.configured, port)
}

// addresses lists the upstreams for a connection over network, tcp or udp, in
// order of preference. If there is none it says why.
func (h *Handler) addresses(cx *layer4.Connection, network string) (addresses []string, err error) {
	var errs []error
	for _, u := range h.upstreams {
		if u.dynamic {
			filled := cx.Replacer().ReplaceAll(u.configured, "")
			parsed, err := parseUpstream(filled)
			if err == nil && parsed.dynamic {
				// What a client can choose must not be expanded twice.
				err = fmt.Errorf("upstream %q: the placeholder's value has braces", filled)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			u = parsed
		}
		if u.network != "" && u.network != network {
			errs = append(errs, fmt.Errorf("upstream %s is not for %s clients", u.configured, network))
			continue
		}
		address, err := u.address(cx.LocalAddr(), h.listeners)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		addresses = append(addresses, address)
	}
	if len(addresses) == 0 {
		return nil, errors.Join(errs...)
	}
	return addresses, nil
}

// listeners returns the addresses of the layer4 servers of the configuration
// that ctx belongs to. Inside an http server's listener wrapper there are
// none, even if layer4 has needed an app that has loaded http.
func listeners(ctx caddy.Context) (addresses []caddy.NetworkAddress, err error) {
	var app *layer4.App
	for _, module := range ctx.Modules() {
		if outer, ok := module.(caddy.App); ok {
			app, _ = outer.(*layer4.App) // the innermost in the end
		}
	}
	if app == nil {
		return nil, nil
	}
	repl := caddy.NewReplacer()
	for _, server := range app.Servers {
		for _, listen := range server.Listen {
			address, err := caddy.ParseNetworkAddress(repl.ReplaceAll(listen, ""))
			if err != nil {
				return nil, fmt.Errorf("parsing listener address %q: %w", listen, err)
			}
			addresses = append(addresses, address)
		}
	}
	return addresses, nil
}
