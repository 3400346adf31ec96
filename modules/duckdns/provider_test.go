package duckdns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard"
	_ "github.com/caddyserver/caddy/v2/modules/caddytls"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	"github.com/libdns/libdns"

	"github.com/homeward-relay/homeward/tests/adapttest"
	"github.com/homeward-relay/homeward/tests/fakeduckdns"
)

const token = "0f6c9d1e-5B5b-4a1c-9f50-7a3f6f2f4f61"

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answering makes the library's client, which is everybody's, be answered.
func answering(t *testing.T, answer roundTripper) {
	t.Helper()
	former := http.DefaultTransport
	http.DefaultTransport = answer
	t.Cleanup(func() { http.DefaultTransport = former })
}

// provider is a module as Caddy loads it.
func provider(t *testing.T, configuration string) *Provider {
	t.Helper()
	storage := fmt.Appendf(nil, `{"module": "file_system", "root": %q}`, t.TempDir())
	ctx, err := caddy.ProvisionContext(&caddy.Config{StorageRaw: storage})
	if err != nil {
		t.Fatal(err)
	}
	module, err := ctx.LoadModuleByID(moduleID, json.RawMessage(configuration))
	if err != nil {
		t.Fatal(err)
	}
	return module.(*Provider)
}

// TestTokenIsRequired is about JSON; a Caddyfile without a token is in testdata.
func TestTokenIsRequired(t *testing.T) {
	for configuration, want := range map[string]string{
		`{}`:                 "needs the account's token",
		`{"api_token": " "}`: "needs the account's token",
		`{"api_token": "{env.HOMEWARD_TEST_NOT_SET}"}`: "", // it may be set for the service
	} {
		ctx, err := caddy.ProvisionContext(nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = ctx.LoadModuleByID(moduleID, json.RawMessage(configuration))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", configuration, err, want)
		}
	}
}

func TestTokenIsHidden(t *testing.T) {
	body := func(status int, text string) roundTripper {
		return func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
		}
	}
	t.Setenv("DUCKDNS_TOKEN", token)
	short := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(short, []byte(token[:20]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, config string
		answer       roundTripper
		want         string // of the error
		is           error
	}{
		{"refused", "{env.DUCKDNS_TOKEN}", body(200, "KO"), "got (KO)", nil},
		{"broken", "{env.DUCKDNS_TOKEN}", body(500, "error in ?token="+token), "error in ?token=REDACTED", nil},
		{"reset", "{env.DUCKDNS_TOKEN}", func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, "unexpected EOF", io.ErrUnexpectedEOF},
		{"timeout", "{env.DUCKDNS_TOKEN}", func(*http.Request) (*http.Response, error) { return nil, context.DeadlineExceeded }, "deadline exceeded", context.DeadlineExceeded},
		{"bad length", "{file." + short + "}", body(200, "KO"), "36 characters", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			answering(t, test.answer)
			p := provider(t, fmt.Sprintf(`{"api_token": %q}`, test.config))
			records := []libdns.Record{libdns.TXT{Name: "_acme-challenge.example", Text: "value"}}
			for name, call := range map[string]func(context.Context, string, []libdns.Record) ([]libdns.Record, error){
				"append": p.AppendRecords, "set": p.SetRecords, "delete": p.DeleteRecords,
			} {
				_, err := call(t.Context(), "duckdns.org.", records)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("%s: got %v, want an error with %q", name, err, test.want)
				}
				if test.is != nil && !errors.Is(err, test.is) {
					t.Errorf("%s: %v is not %v", name, err, test.is)
				}
				for inner := err; inner != nil; inner = errors.Unwrap(inner) {
					for _, text := range []string{inner.Error(), fmt.Sprintf("%+v", inner), fmt.Sprintf("%#v", inner.Error())} {
						if strings.Contains(strings.ToLower(text), strings.ToLower(token[:20])) {
							t.Errorf("%s: the error shows the token: %s", name, text)
						}
					}
				}
			}
		})
	}
}

func TestSetsOneRecord(t *testing.T) {
	fake := fakeduckdns.New(token, "example")
	answering(t, func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		fake.ServeHTTP(w, r)
		return w.Result(), nil
	})
	p := provider(t, fmt.Sprintf(`{"api_token": %q}`, token))
	for _, address := range []string{"203.0.113.5", "2001:db8::5", "203.0.113.6"} {
		if _, err := p.SetRecords(t.Context(), "duckdns.org.", []libdns.Record{libdns.Address{Name: "example", IP: netip.MustParseAddr(address)}}); err != nil {
			t.Fatal(err)
		}
	}
	if a, aaaa := fake.Addresses("example"); a.String() != "203.0.113.6" || aaaa.String() != "2001:db8::5" {
		t.Errorf("the domain has %v and %v", a, aaaa)
	}
}

func TestCaddyfile(t *testing.T) { adapttest.Run(t, "testdata", nil) }
