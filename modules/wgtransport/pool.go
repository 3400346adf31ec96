package wgtransport

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// pool has the connections for one server name, or those without TLS.
type pool struct {
	transport *Transport
	tls       *tls.Config // nil without TLS

	// requests serves what does not upgrade, by HTTP/1.1, HTTP/2 or h2c. nil
	// with HTTP/3.
	requests *http.Transport

	// upgrading serves what upgrades, by HTTP/1.1.
	upgrading *http.Transport

	// http3 serves what does not upgrade, if the upstreams speak HTTP/3.
	http3 *http3.Transport

	// ctx ends when the pool closes, and dials by HTTP/3 with it.
	ctx    context.Context
	cancel context.CancelFunc

	// The fields below are pools', and protected by its lock.
	key     poolKey
	users   int
	uses    uint64 // so far
	removed bool
	timer   *time.Timer
	element *list.Element
}

func (t *Transport) newPool(key poolKey) *pool {
	p := &pool{transport: t}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if key.secure {
		p.tls = t.tls.Clone()
		p.tls.ServerName = key.serverName
	}

	http1 := new(http.Protocols)
	http1.SetHTTP1(true)
	p.upgrading = p.newHTTPTransport(http1, nil)
	if t.http3() {
		p.http3 = p.newHTTP3Transport()
		return p
	}

	protocols := new(http.Protocols)
	var alpn []string
	if slices.Contains(t.Versions, "h2c") {
		// net/http speaks h2c only where it does not speak HTTP/1.1. Over TLS
		// it follows what is negotiated all the same.
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
	}
	if slices.Contains(t.Versions, "2") || slices.Contains(t.Versions, "h2c") {
		protocols.SetHTTP2(true)
		alpn = []string{"h2", "http/1.1"}
	}
	p.requests = p.newHTTPTransport(protocols, alpn)
	return p
}

// newHTTPTransport makes what speaks HTTP over TCP. It has no Proxy, so the
// environment's is not asked for either.
func (p *pool) newHTTPTransport(protocols *http.Protocols, alpn []string) *http.Transport {
	t := p.transport
	probe := max(0, time.Duration(t.KeepAlive.ProbeInterval))
	rt := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return t.dial(ctx) },
		Protocols:              protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: probe},
		DisableKeepAlives:      t.KeepAlive.Enabled != nil && !*t.KeepAlive.Enabled,
		DisableCompression:     t.Compression != nil && !*t.Compression,
		MaxIdleConns:           t.KeepAlive.MaxIdleConns,
		MaxIdleConnsPerHost:    t.KeepAlive.MaxIdleConnsPerHost,
		MaxConnsPerHost:        t.MaxConnsPerHost,
		IdleConnTimeout:        time.Duration(t.KeepAlive.IdleConnTimeout),
		ResponseHeaderTimeout:  time.Duration(t.ResponseHeaderTimeout),
		ExpectContinueTimeout:  time.Duration(t.ExpectContinueTimeout),
		MaxResponseHeaderBytes: t.MaxResponseHeaderSize,
		WriteBufferSize:        t.WriteBufferSize,
		ReadBufferSize:         t.ReadBufferSize,
	}
	if p.tls != nil {
		config := p.tls.Clone()
		config.NextProtos = alpn
		rt.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return t.dialTLS(ctx, config) }
	}
	return rt
}

func (p *pool) roundTrip(req *http.Request) (*http.Response, error) {
	switch {
	case upgrades(req):
		return p.upgrading.RoundTrip(req)
	case p.http3 != nil:
		return p.roundTripHTTP3(req)
	}
	return p.requests.RoundTrip(req)
}

// closeIdle closes the TCP connections that no request uses, now and as they
// become idle.
func (p *pool) closeIdle() {
	p.upgrading.CloseIdleConnections()
	if p.requests != nil {
		p.requests.CloseIdleConnections()
	}
}

// close ends a pool that has no users.
func (p *pool) close() {
	p.cancel()
	p.closeIdle()
	if p.http3 != nil {
		// It closes connections; there is nothing left to tell anyone.
		_ = p.http3.Close()
	}
}
