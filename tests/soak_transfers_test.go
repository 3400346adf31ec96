package tests

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
)

// transfer makes one transfer after the other, both ways.
func (l *workload) transfer(home soakHome, random *rand.Rand) {
	for l.rest(l.sending, 50*time.Millisecond) {
		transfer := services.Transfer{
			Up:   random.IntN(2) == 0,
			Seed: byte(random.IntN(256)),
			// As often small as large.
			Size: int64(float64(l.sizes[0]) * math.Pow(float64(l.sizes[1])/float64(l.sizes[0]), random.Float64())),
		}
		conn, err := l.dial(l.ctx, home.name, home.transfers)
		if err != nil {
			l.judge(conn, "a transfer", false, err)
			continue
		}
		// Where the receiver is the slow one, all buffers on the way are full.
		if random.IntN(2) == 0 {
			conn.rate = l.rate
		} else {
			transfer.Rate = l.rate
		}
		l.mu.Lock()
		conn.bulk = true
		overtake := l.overtake
		l.mu.Unlock()
		done := make(chan struct{})
		l.transfers.Go(func() {
			defer close(done)
			l.carry(conn, transfer)
		})
		select {
		case <-done:
			continue
		case <-overtake:
		}
		if !conn.mayBeCut() {
			<-done
		}
	}
}

// carry carries one transfer out.
func (l *workload) carry(conn *soakConn, transfer services.Transfer) {
	defer conn.drop()
	what := fmt.Sprintf("a transfer %s %s of %d bytes", map[bool]string{true: "to", false: "from"}[transfer.Up], conn.home, transfer.Size)
	if err := transfer.Ask(conn); err != nil {
		l.judge(conn, what+" not yet begun", false, err)
		return
	}
	if err := transfer.Run(conn); err != nil {
		l.judge(conn, what, true, err)
		return
	}
	// Home ends in order when it has the sum; and then so does this end.
	conn.Close()
	l.count(func(n *soakCounts) { n.transfers++; n.bytes += transfer.Size })
}

// served judges how a transfer went at home, whose proxy is the client if home is
// our binary. That is caddy-l4's, which makes an orderly end of every end; there
// it is only counted.
func (l *workload) served(client net.Addr, transfer services.Transfer, err error) {
	if l.ctx.Err() != nil {
		return
	}
	proxied := client.(*net.TCPAddr).IP.IsLoopback()
	switch {
	case errors.Is(err, services.ErrCut) && proxied:
		l.count(func(n *soakCounts) { n.homeCut++ })
	case errors.Is(err, services.ErrCut), errors.Is(err, services.ErrDiffers):
		l.fail("at home (from %v, up %t, %d bytes): %v", client, transfer.Up, transfer.Size, err)
	}
}

// page asks for a page of a site and compares it.
func (l *workload) page(ctx context.Context, client *http.Client, home soakHome, path string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+home.site+path, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	if !bytes.Equal(body, l.pages[home.site+path]) {
		return fmt.Errorf("%w: in a page of %d bytes", services.ErrDiffers, len(body))
	}
	return nil
}

// browser makes a client for a home's site, whose connections are cut off when ctx
// ends: a request that is given up leaves a dial or a handshake behind.
func (l *workload) browser(ctx context.Context, home soakHome) *http.Client {
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				conn, err := l.dial(ctx, home.name, "443")
				if err != nil {
					return nil, err
				}
				context.AfterFunc(ctx, conn.drop)
				return conn, nil
			},
			TLSClientConfig:   &tls.Config{RootCAs: l.w.public.Pool()},
			ForceAttemptHTTP2: true,
			IdleConnTimeout:   5 * time.Second,
		},
	}
}

// visit asks for a home's page again and again.
func (l *workload) visit(home soakHome) {
	client := l.browser(l.ctx, home)
	defer client.CloseIdleConnections()
	for l.rest(l.sending, 200*time.Millisecond) {
		attempt := &soakConn{home: home.name, since: l.troubles.now(home.name), begun: time.Now()}
		err := l.page(l.ctx, client, home, "/soak")
		away, _ := l.troubles.since(home.name, attempt.since)
		switch {
		case err == nil:
			l.count(func(n *soakCounts) { n.requests++ })
		case errors.Is(err, services.ErrDiffers), !away && l.ctx.Err() == nil:
			l.fail("a request for %s, begun %s before: %v", home.site, time.Since(attempt.begun).Round(time.Millisecond), err)
		default:
			l.count(func(n *soakCounts) { n.badRequests++ })
			// It may be to an address that the relay has no more.
			client.CloseIdleConnections()
		}
	}
}
