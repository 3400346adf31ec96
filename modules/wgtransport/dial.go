package wgtransport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/homeward-relay/homeward/modules/wireguard"
)

// dial connects to the upstream of ctx's attempt through its tunnel, and has
// said what the PROXY protocol says when it returns.
func (t *Transport) dial(ctx context.Context) (net.Conn, error) {
	a, err := attemptIn(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(t.DialTimeout))
	defer cancel()
	conn, route, err := t.tunnels.Dial(ctx, "tcp", a.address, t.dialOptions(a))
	if err != nil {
		return nil, reverseproxy.NewDialError(err)
	}
	prepared, err := t.prepare(conn, a)
	if err != nil {
		_ = conn.Close()
		return nil, reverseproxy.NewDialError(fmt.Errorf("dialing %s: %w", a.address, err))
	}
	t.logDialed("tcp", a, route)
	return prepared, nil
}

func (t *Transport) logDialed(network string, a *attempt, route wireguard.Route) {
	if entry := t.logger.Check(zapcore.DebugLevel, "dialed upstream"); entry != nil {
		entry.Write(
			zap.String("network", network),
			zap.String("upstream", a.address),
			zap.String("tunnel", route.Tunnel),
			zap.String("peer", route.Peer),
			zap.Stringer("address", route.Address),
		)
	}
}

func (t *Transport) dialOptions(a *attempt) wireguard.DialOptions {
	return wireguard.DialOptions{Tunnel: t.Tunnel, Client: a.client}
}

// prepare returns what is to be used in place of a connection to the upstream.
func (t *Transport) prepare(conn net.Conn, a *attempt) (net.Conn, error) {
	interval := time.Duration(t.KeepAlive.ProbeInterval)
	if interval == 0 { // an upgraded connection beside HTTP/3
		interval = defaultProbeInterval
	}
	conn, err := watchLiveness(conn, interval)
	if err != nil {
		return nil, err
	}
	if t.ProxyProtocol != "" {
		if err := writeProxyHeader(conn, t.ProxyProtocol, a.client, a.reached); err != nil {
			return nil, fmt.Errorf("sending the PROXY protocol header: %w", err)
		}
	}
	if t.ReadTimeout > 0 || t.WriteTimeout > 0 {
		conn = &timeoutConn{Conn: conn, read: time.Duration(t.ReadTimeout), write: time.Duration(t.WriteTimeout)}
	}
	return conn, nil
}

// dialTLS connects to the upstream of ctx's attempt and verifies its
// certificate.
func (t *Transport) dialTLS(ctx context.Context, config *tls.Config) (net.Conn, error) {
	conn, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, config)
	handshake, cancel := context.WithTimeout(ctx, time.Duration(t.TLS.HandshakeTimeout))
	defer cancel()
	if err := secure.HandshakeContext(handshake); err != nil {
		_ = conn.Close()
		a, _ := attemptIn(ctx)
		return nil, reverseproxy.NewDialError(handshakeError(a, err))
	}
	return secure, nil
}

// handshakeError says which name was asked for when a TLS handshake failed, and
// what can be done about the usual mistakes.
func handshakeError(a *attempt, err error) error {
	var remedy string
	var name x509.HostnameError
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var other pinError
	switch {
	case errors.As(err, &name) && a.serverName == a.host:
		remedy = "; set tls_server_name to a name that it is valid for, or, for an active health check, `health_headers { Host <name> }`"
	case errors.As(err, &name):
		remedy = "; the upstream needs a certificate for that name, or set tls_server_name to one that it has" + pinHint(err)
	case errors.As(err, &authority):
		remedy = "; let the upstream send its whole chain (fullchain.pem), or trust its issuer with tls_trust_pool" + pinHint(err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		remedy = "; see that the upstream renews its certificate, and that this machine's clock is right" + pinHint(err)
	case errors.As(err, &other):
		remedy = "; if the upstream has a new certificate, write the key that it has now"
	case errors.Is(err, context.DeadlineExceeded):
		remedy = "; the upstream accepted the connection but said nothing"
	default:
		return fmt.Errorf("making a TLS connection with %s for %q: %w", a.address, a.serverName, err)
	}
	return fmt.Errorf("making a TLS connection with %s for %q: %w%s", a.address, a.serverName, err, remedy)
}

// timeoutConn ends a connection on which one read or one write takes too long.
type timeoutConn struct {
	net.Conn
	read, write time.Duration // 0 for no limit
}

func (c *timeoutConn) Read(p []byte) (int, error) {
	if c.read > 0 {
		if err := c.SetReadDeadline(time.Now().Add(c.read)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

func (c *timeoutConn) Write(p []byte) (int, error) {
	if c.write > 0 {
		if err := c.SetWriteDeadline(time.Now().Add(c.write)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}
