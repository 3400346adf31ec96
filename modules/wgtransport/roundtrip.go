package wgtransport

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// RoundTrip sends req to the upstream that reverse_proxy has chosen for it. An
// error that came before anything of the request was sent is a
// reverseproxy.DialError, after which a request of any method may be retried.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	a, host, err := t.newAttempt(req)
	if err != nil {
		closeBody(req)
		return nil, reverseproxy.NewDialError(err)
	}

	out := req.WithContext(a.in(req.Context()))
	out.Host = host
	out.URL = new(url.URL)
	*out.URL = *req.URL
	out.URL.Scheme = "http"
	if a.secure {
		out.URL.Scheme = "https"
	}
	out.URL.Host = t.connectionKey(a)

	pool := t.pools.acquire(poolKey{a.secure, a.serverName})
	resp, err := pool.roundTrip(out)
	if err != nil {
		t.pools.release(pool)
		return nil, t.lost(req.Context(), a, err)
	}
	resp.Request = req
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// The connection has left the pool, and its body must stay an
		// io.ReadWriteCloser.
		t.pools.release(pool)
		return resp, nil
	}
	resp.Body = &releasingBody{ReadCloser: resp.Body, release: func() { t.pools.release(pool) }}
	return resp, nil
}

// lost explains the error of a connection that ended because nobody at its
// other end answered any more, as when home has vanished. Other errors it
// returns as they are.
func (t *Transport) lost(ctx context.Context, a *attempt, err error) error {
	// net/http's HTTP/2 client has no value for its error, only this text.
	if !errors.Is(err, syscall.ETIMEDOUT) && !strings.HasSuffix(err.Error(), "client connection lost") {
		return err
	}
	routes, routesErr := t.tunnels.Routes(ctx, a.address, t.dialOptions(a))
	if routesErr != nil || len(routes) == 0 {
		return err
	}
	return fmt.Errorf("%s stopped answering on an open connection: %w", a.address, t.tunnels.Explain(ctx, routes[0], err))
}

// connectionKey is what a connection that serves a must have been made for,
// besides the server's name, in the form of a URL's host: HTTP transports use
// it to find a pooled connection. The address to dial is not taken from it.
// With the PROXY protocol, a connection belongs to one client.
func (t *Transport) connectionKey(a *attempt) string {
	if t.ProxyProtocol == "" {
		return a.address
	}
	client := "local"
	if a.client.IsValid() {
		client = hex.EncodeToString(a.client.AsSlice())
	}
	_, port, err := net.SplitHostPort(a.address)
	if err != nil {
		port = "0"
	}
	return net.JoinHostPort(client+"."+hex.EncodeToString([]byte(a.address)), port)
}

// upgrades says whether req wants to leave HTTP, which only HTTP/1.1 can.
func upgrades(req *http.Request) bool {
	if req.Header.Get("Upgrade") == "" {
		return false
	}
	for _, value := range req.Header.Values("Connection") {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return true
			}
		}
	}
	return false
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// releasingBody gives back the pool of its connection when it is closed. That
// it has been read to its end is not enough: an HTTP/2 connection counts as
// idle a moment later.
type releasingBody struct {
	io.ReadCloser
	once    sync.Once
	release func()
}

func (b *releasingBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.release)
	return err
}
