package wgtransport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// attempt is one try to have one upstream answer one request. What a dial
// needs is fixed in it when the try begins: a dial goes on when its request
// has given up and is tried at another upstream, by when the request's
// variables say something else.
type attempt struct {
	address    string     // of the upstream, host:port
	host       string     // of address
	secure     bool       // over TLS
	serverName string     // that TLS verifies; "" without TLS, or if nothing is verified
	client     netip.Addr // on whose behalf; the zero value in a health check
	reached    netip.Addr // the address of this machine that the client reached; may be the zero value
}

type attemptKey struct{}

func (a *attempt) in(ctx context.Context) context.Context {
	return context.WithValue(ctx, attemptKey{}, a)
}

func attemptIn(ctx context.Context) (*attempt, error) {
	a, ok := ctx.Value(attemptKey{}).(*attempt)
	if !ok {
		return nil, errors.New("dialing without an upstream")
	}
	return a, nil
}

// newAttempt finds out what req wants of the upstream that reverse_proxy has
// chosen. It returns req's Host too, which is never empty.
func (t *Transport) newAttempt(req *http.Request) (*attempt, string, error) {
	ctx := req.Context()
	info, ok := reverseproxy.GetDialInfo(ctx)
	if !ok {
		return nil, "", errors.New("finding the upstream: transport wireguard works in reverse_proxy only")
	}
	if info.Network != "tcp" {
		return nil, "", fmt.Errorf("dialing %s: %w", info, errNetwork)
	}
	a := &attempt{
		address: info.Address,
		host:    info.Host,
		secure:  t.TLS != nil && !slices.Contains(t.TLS.ExceptPorts, info.Port),
		client:  clientOf(ctx),
		reached: reachedBy(ctx),
	}
	host := req.Host
	switch {
	case host != "":
	case req.Response != nil: // a health check follows a redirect
		host = req.URL.Host
	default: // HTTP/1.0
		host = info.Address
	}
	if a.secure {
		name, err := t.serverName(ctx, a.host, req.Host)
		if err != nil {
			return nil, "", fmt.Errorf("dialing %s: %w", info.Address, err)
		}
		a.serverName = name
	}
	return a, host, nil
}

var errNetwork = errors.New("a tunnel reaches upstreams by host:port over tcp only")

// maxServerName is the length of the longest DNS name. What is longer is none,
// and no key for a pool either.
const maxServerName = 255

// serverName returns the name that the upstream's certificate must be valid
// for: that of the option tls_server_name if there is one, else that of a
// peer's or address's request, else the upstream's own.
func (t *Transport) serverName(ctx context.Context, upstream, requested string) (string, error) {
	name := upstream
	switch {
	case t.TLS.ServerName != "":
		name = t.TLS.ServerName
		if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
			name = repl.ReplaceAll(name, "")
		}
		if name == "" && t.verifiesName() {
			return "", fmt.Errorf("tls_server_name %s is empty for this request, so the certificate cannot be verified", t.TLS.ServerName)
		}
	case nameless(upstream):
		name = hostname(requested)
		if name == "" && t.verifiesName() {
			return "", errors.New("the request names no host, so the certificate cannot be verified; set tls_server_name")
		}
	}
	if len(name) > maxServerName {
		return "", fmt.Errorf("a name of %d bytes is in no certificate", len(name))
	}
	return strings.ToLower(strings.TrimSuffix(name, ".")), nil
}

// nameless says whether an upstream's host is an IP address or a peer, neither
// of which home's certificate is likely to name. The names of peers have no
// dot.
func nameless(host string) bool {
	if !strings.Contains(host, ".") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// hostname is the host in a Host header, without port and brackets.
func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// clientOf returns the client's address as Caddy has it, past trusted proxies.
func clientOf(ctx context.Context) netip.Addr {
	text, _ := caddyhttp.GetVar(ctx, caddyhttp.ClientIPVarKey).(string)
	if address, err := netip.ParseAddr(text); err == nil {
		return address.Unmap()
	}
	if address, err := netip.ParseAddrPort(text); err == nil {
		return address.Addr().Unmap()
	}
	return netip.Addr{}
}

// reachedBy returns the address at which the client's connection came in.
func reachedBy(ctx context.Context) netip.Addr {
	switch address := ctx.Value(http.LocalAddrContextKey).(type) {
	case *net.TCPAddr:
		return address.AddrPort().Addr().Unmap()
	case *net.UDPAddr:
		return address.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
