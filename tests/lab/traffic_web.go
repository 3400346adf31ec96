package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// webTLS trusts the world's CA and nobody else.
func (w *World) webTLS() *tls.Config {
	return &tls.Config{ServerName: testnet.Domain, RootCAs: w.ca.Pool()}
}

// webTransport makes HTTPS connections that begin at the client.
func (w *World) webTransport() *http.Transport {
	return &http.Transport{DialContext: w.Client.Dial, TLSClientConfig: w.webTLS(), ForceAttemptHTTP2: true}
}

// wrongAnswer is an answer that is not home's. Where a request may fail, this
// may not: a relay that is quick to say something else has no figure.
type wrongAnswer struct{ error }

// fetch gets a path of home's web server by HTTP/2.
func fetch(ctx context.Context, transport http.RoundTripper, path string, size int64) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, site+path, nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return wrongAnswer{err}
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.ProtoMajor != 2 {
		return wrongAnswer{fmt.Errorf("%s: the answer is %s %s", path, response.Proto, response.Status)}
	}
	n, err := io.Copy(io.Discard, response.Body)
	if err == nil && n != size {
		err = wrongAnswer{fmt.Errorf("%s: the answer has %d bytes, not %d", path, n, size)}
	}
	return err
}

// https fetches the document again and again, with a TLS connection for each.
func (r *run) https(ctx context.Context) (*result, error) {
	return r.inTurn(ctx, func(ctx context.Context) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		// With a transport for each, nothing can be left from the one before.
		transport := r.webTransport()
		transport.DisableKeepAlives = true
		begin := time.Now()
		err := fetch(ctx, transport, "/", pageSize)
		return time.Since(begin), err
	})
}

// browser loads pages with all of their objects, one after the other. The first
// opens the connection, the others find it open.
func (r *run) browser(ctx context.Context) (*result, error) {
	duration := time.Duration(r.traffic.Seconds) * time.Second
	ctx, cancel := context.WithTimeout(ctx, duration+30*time.Second)
	defer cancel()
	transport := r.webTransport()
	defer transport.CloseIdleConnections()
	end := time.Now().Add(duration)
	var took []time.Duration
	for time.Now().Before(end) {
		begin := time.Now()
		if err := loadPage(ctx, transport); err != nil {
			return nil, fmt.Errorf("page %d: %w", len(took)+1, err)
		}
		took = append(took, time.Since(begin))
	}
	return latencies(took)
}

// loadPage fetches the document, and then all of its objects at once.
func loadPage(ctx context.Context, transport http.RoundTripper) error {
	if err := fetch(ctx, transport, "/", pageSize); err != nil {
		return err
	}
	errs := make([]error, objects)
	var all sync.WaitGroup
	for n := range objects {
		all.Go(func() { errs[n] = fetch(ctx, transport, objectPath(n), objectSize) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// websocket is ping in messages of a websocket.
func (r *run) websocket(ctx context.Context) (*result, error) {
	duration := time.Duration(r.traffic.Seconds) * time.Second
	ctx, cancel := context.WithTimeout(ctx, duration+30*time.Second)
	defer cancel()
	conn, err := r.Client.Dial(ctx, "tcp", net.JoinHostPort(testnet.Domain, strconv.Itoa(webPort)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	socket, err := services.DialWebSocket(tls.Client(conn, r.webTLS()), site+webSocketPath)
	if err != nil {
		return nil, err
	}
	return watchEcho(ctx, socket, duration)
}
