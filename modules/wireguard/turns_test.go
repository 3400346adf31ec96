package wireguard

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/homeward-relay/homeward/modules/internal/dnsturns"

	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/homeward-relay/homeward/modules/duckdns"
)

// init takes the pauses out of turns, which would hide one that begins early.
func init() { orderTurns.StepBack = time.Nanosecond }

// tlsApp is the tls app of a running configuration.
func tlsApp(t *testing.T, automation string) *caddytls.TLS {
	t.Helper()
	persist := false
	err := caddy.Run(&caddy.Config{
		Admin:      &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &persist}},
		StorageRaw: json.RawMessage(`{"module":"file_system","root":"` + t.TempDir() + `"}`),
		AppsRaw: caddy.ModuleMap{
			"tls": json.RawMessage(automation),
			"pki": json.RawMessage(`{"certificate_authorities":{"local":{"install_trust":false}}}`),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	app, err := caddy.ActiveContext().AppIfConfigured("tls")
	if err != nil {
		t.Fatal(err)
	}
	return app.(*caddytls.TLS)
}

func TestChallengeRecord(t *testing.T) {
	const provider = `"provider":{"name":"duckdns","api_token":"x"}`
	tls := tlsApp(t, `{"automation":{"policies":[
		{"subjects":["example.duckdns.org","*.example.duckdns.org"],
			"issuers":[{"module":"acme","challenges":{"dns":{`+provider+`}}}]},
		{"subjects":["internal.duckdns.org"],"issuers":[{"module":"internal"}]},
		{"subjects":["http.duckdns.org"],"issuers":[{"module":"acme"}]},
		{"subjects":["defaults.duckdns.org"]},
		{"subjects":["second.duckdns.org"],"issuers":[
			{"module":"acme"},{"module":"acme","challenges":{"dns":{`+provider+`}}}]},
		{"subjects":["www.example.com"],"issuers":[{"module":"acme","challenges":{"dns":{`+provider+`,
			"override_domain":"_acme-challenge.example.duckdns.org"}}}]},
		{"subjects":["elsewhere.duckdns.org"],"issuers":[{"module":"acme","challenges":{"dns":{`+provider+`,
			"override_domain":"challenges.localhost"}}}]}
	]}}`)
	for _, tt := range []struct {
		name       string
		origin     caddy.Module
		identifier string
		want       string
	}{
		{"domain", tls, "example.duckdns.org", "example.duckdns.org"},
		{"below it", tls, "sub.example.duckdns.org", "example.duckdns.org"},
		{"wildcard", tls, "*.example.duckdns.org", "example.duckdns.org"},
		{"Caddy's own CA", tls, "internal.duckdns.org", ""},
		{"another challenge", tls, "http.duckdns.org", ""},
		{"default issuers", tls, "defaults.duckdns.org", ""},
		{"no policy", tls, "other.duckdns.org", ""},
		{"second issuer", tls, "second.duckdns.org", "second.duckdns.org"},
		{"delegated to DuckDNS", tls, "www.example.com", "example.duckdns.org"},
		{"delegated away", tls, "elsewhere.duckdns.org", ""},
		{"unknown origin", nil, "sub.example.duckdns.org", "example.duckdns.org"},
		{"no identifier", nil, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			record := challengeRecord(t.Context(), tt.origin, tt.identifier)
			if got := dnsturns.Slot(record); got != tt.want {
				t.Errorf("got %q at %q, want %q", got, record, tt.want)
			}
		})
	}
}

// handle gives a handler an event in the background.
func handle(t *testing.T, ctx context.Context, h *turnHandler, name string, data map[string]any) <-chan error {
	t.Helper()
	event, err := caddy.NewEvent(caddy.Context{Context: ctx}, name, data)
	if err != nil {
		t.Fatal(err)
	}
	handled := make(chan error, 1)
	go func() { handled <- h.Handle(ctx, event) }()
	return handled
}

func handled(t *testing.T, result <-chan error) error {
	t.Helper()
	select {
	case err := <-result:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("still handling the event")
		return nil
	}
}

func blocked(t *testing.T, result <-chan error) {
	t.Helper()
	select {
	case err := <-result:
		t.Fatalf("out of turn: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
}

// newTurnHandlers are those of two configurations, of which the second
// replaces the first.
func newTurnHandlers(t *testing.T) (before, after *turnHandler, storage certmagic.Storage) {
	storage = &certmagic.FileStorage{Path: t.TempDir()}
	logger := zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))
	return &turnHandler{storage, logger}, &turnHandler{storage, logger}, storage
}

func TestTurnEvents(t *testing.T) {
	for _, end := range []string{"cert_obtained", "cert_failed"} {
		t.Run(end, func(t *testing.T) {
			h, other, _ := newTurnHandlers(t)
			ctx := t.Context()
			first := map[string]any{"identifier": "first." + end + ".duckdns.org"}
			second := map[string]any{"identifier": "second." + end + ".duckdns.org", "renewal": true}
			if err := handled(t, handle(t, ctx, h, "cert_obtaining", first)); err != nil {
				t.Fatal(err)
			}
			waiting := handle(t, ctx, h, "cert_obtaining", second)
			blocked(t, waiting)
			handled(t, handle(t, ctx, h, end, second))
			handled(t, handle(t, ctx, other, end, first))
			handled(t, handle(t, ctx, h, end, nil))
			blocked(t, waiting)
			if err := handled(t, handle(t, ctx, h, end, first)); err != nil {
				t.Error(err)
			}
			if err := handled(t, waiting); err != nil {
				t.Error(err)
			}
			handled(t, handle(t, ctx, h, end, second))
		})
	}
}

// A configuration goes away while one of its orders has a turn and another
// waits. The first still holds certmagic's lock, to remove its TXT value.
func TestTurnsOfConfigurationGone(t *testing.T) {
	before, after, storage := newTurnHandlers(t)
	ctx, cancel := context.WithCancel(t.Context())
	const id = "going.gone.duckdns.org"
	if err := storage.Lock(ctx, "issue_cert_"+id); err != nil {
		t.Fatal(err)
	}
	if err := handled(t, handle(t, ctx, before, "cert_obtaining", map[string]any{"identifier": id})); err != nil {
		t.Fatal(err)
	}
	waiting := handle(t, ctx, before, "cert_obtaining", map[string]any{"identifier": "waiting.gone.duckdns.org"})
	blocked(t, waiting)
	next := handle(t, t.Context(), after, "cert_obtaining", map[string]any{"identifier": "next.gone.duckdns.org"})
	cancel()
	err := handled(t, waiting)
	if !errors.Is(err, caddy.ErrEventAborted) || !errors.Is(err, context.Canceled) {
		t.Errorf("waiting order got %v, want it aborted and canceled", err)
	}
	blocked(t, next)
	if err := storage.Unlock(t.Context(), "issue_cert_"+id); err != nil {
		t.Fatal(err)
	}
	if err := handled(t, next); err != nil {
		t.Error(err)
	}
	handled(t, handle(t, t.Context(), after, "cert_obtained", map[string]any{"identifier": "next.gone.duckdns.org"}))
}
