package ddns

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/libdns/libdns"
)

// The secrets of a provider, with all that is escaped somewhere.
const (
	leakyToken    = `tok/en+with=all&sorts" of\it<%>ä`
	leakyPassword = "p4$$!" // shorter than what is a secret by its length
	leakyKey      = "0f6c9d1e5b5b4a1c"
	leakyKeyLong  = leakyKey + "9f507a3f6f2f4f61" // begins as the other does
	leakyPIN      = "8642097531"
)

func init() {
	caddy.RegisterModule(new(leaky))
	caddy.RegisterModule(new(keeper))
}

// leaksIn is the way in which the provider fails. It is no option, which would be hidden too.
var leaksIn atomic.Value

// called has an element if the provider was called.
var called = make(chan struct{}, 1)

// leaky is a provider of somebody else's, which shows its secrets in errors.
type leaky struct {
	APIToken string `json:"api_token"`
	Account  struct {
		User     string   `json:"user"`
		Password string   `json:"password"`
		Keys     []string `json:"keys"`
	} `json:"account"`
	Header      string          `json:"header"`
	Credentials string          `json:"credentials"`
	PIN         json.RawMessage `json:"pin"`

	expanded []*string
}

func (*leaky) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "dns.providers.leaky", New: func() caddy.Module { return new(leaky) }}
}

func (p *leaky) Provision(caddy.Context) error {
	p.expanded = []*string{&p.APIToken, &p.Account.User, &p.Account.Password, &p.Header, &p.Credentials}
	for i := range p.Account.Keys {
		p.expanded = append(p.expanded, &p.Account.Keys[i])
	}
	for _, value := range p.expanded {
		*value = caddy.NewReplacer().ReplaceAll(*value, "")
	}
	if leaksIn.Load() == "provision" {
		return fmt.Errorf("API token '%s' appears invalid", p.APIToken)
	}
	return nil
}

func (p *leaky) Validate() error {
	if leaksIn.Load() == "validate" {
		return fmt.Errorf("it is not allowed: %w", &url.Error{Op: "Get", URL: "https://api.example/?token=" + url.QueryEscape(p.APIToken), Err: errors.New("403")})
	}
	return nil
}

// leaks are the ways in which errors have secrets in them, and what is then not to be read.
var leaks = map[string]func(p *leaky) (err error, hidden string){
	"as it is":      func(p *leaky) (error, string) { return errors.New(p.APIToken), p.APIToken },
	"in upper case": func(p *leaky) (error, string) { return errors.New(strings.ToUpper(p.Account.Keys[1])), leakyKey },
	"short":         func(p *leaky) (error, string) { return errors.New("for " + p.Account.Password), p.Account.Password },
	"a part":        func(p *leaky) (error, string) { return errors.New("for " + leakyKey), leakyKey },
	"a longer one": func(p *leaky) (error, string) {
		return errors.New("for " + p.Account.Keys[1]), leakyKeyLong[len(leakyKey):]
	},
	"a number": func(p *leaky) (error, string) { return errors.New("for " + string(p.PIN)), leakyPIN },
	"quoted":   func(p *leaky) (error, string) { return fmt.Errorf("for %q", p.APIToken), `/en+with=all&sorts` },
	"quoted twice": func(p *leaky) (error, string) {
		return fmt.Errorf("for %q", strconv.Quote(p.APIToken)), `/en+with=all&sorts`
	},
	"in ASCII":       func(p *leaky) (error, string) { return fmt.Errorf("for %+q", p.APIToken), `/en+with=all&sorts` },
	"of credentials": func(p *leaky) (error, string) { return errors.New("for inner-secret"), "inner-secret" },
	"in JSON": func(p *leaky) (error, string) {
		body, _ := json.Marshal(p)
		return fmt.Errorf("400: %s", body), `/en+with=all`
	},
	"in a query": func(p *leaky) (error, string) {
		_, err := http.Get("http://127.0.0.1:1/update?token=" + url.QueryEscape(p.APIToken))
		return fmt.Errorf("asking: %w", err), url.QueryEscape(p.APIToken)
	},
	"in a query, in small letters": func(p *leaky) (error, string) {
		escaped := strings.ToLower(url.QueryEscape(p.APIToken))
		return &url.Error{Op: "Get", URL: "https://api.example/?token=" + escaped, Err: errors.New("500")}, escaped
	},
	"in a path": func(p *leaky) (error, string) {
		u := url.URL{Scheme: "http", Host: "127.0.0.1:1", Path: "/v1/" + p.APIToken + "/records"}
		_, err := http.Get(u.String())
		return err, u.EscapedPath()
	},
	"in a segment of a path": func(p *leaky) (error, string) {
		return errors.New("GET /v1/" + url.PathEscape(p.APIToken)), url.PathEscape(p.APIToken)
	},
	"for a user in a URL": func(p *leaky) (error, string) {
		u := url.URL{Scheme: "https", Host: "api.example", User: url.UserPassword(p.Account.User, p.APIToken)}
		return fmt.Errorf("asking %s", &u), u.User.String()
	},
	"in a form": func(p *leaky) (error, string) {
		form := url.Values{"user": {p.Account.User}, "token": {p.APIToken}}.Encode()
		return errors.New("sent " + form), form
	},
	"in HTML": func(p *leaky) (error, string) {
		return errors.New(`<p>tok/en+with=all&amp;sorts&#34; of\it&lt;%&gt;ä</p>`), `/en+with=all&amp;sorts`
	},
	"by Basic": func(p *leaky) (error, string) {
		request, _ := http.NewRequest(http.MethodGet, "http://api.example/", nil)
		request.SetBasicAuth(p.Account.User, p.Account.Keys[1])
		dump, _ := httputil.DumpRequestOut(request, false)
		return fmt.Errorf("401 for %s", dump), base64.StdEncoding.EncodeToString([]byte(leakyKeyLong))[4:20]
	},
	"in base64 of a URL": func(p *leaky) (error, string) {
		encoded := base64.RawURLEncoding.EncodeToString([]byte(p.APIToken))
		return errors.New("for " + encoded), encoded[4 : len(encoded)-4]
	},
	"joined": func(p *leaky) (error, string) {
		return errors.Join(errors.New("one"), fmt.Errorf("two: %w", errors.New(p.Header))), leakyToken
	},
	"alone out of a header": func(p *leaky) (error, string) {
		return errors.New(strings.TrimPrefix(p.Header, "Bearer ")), leakyToken
	},
}

func (p *leaky) SetRecords(context.Context, string, []libdns.Record) ([]libdns.Record, error) {
	way := leaksIn.Load().(string)
	select {
	case called <- struct{}{}:
	default:
	}
	err, _ := leaks[way](p)
	return nil, fmt.Errorf("it has failed %s: %w", way, err)
}

// keeper keeps the events that there are.
type keeper struct{}

var kept struct {
	sync.Mutex
	text strings.Builder
}

func (*keeper) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.keeper", New: func() caddy.Module { return new(keeper) }}
}

func (*keeper) Handle(_ context.Context, event caddy.Event) error {
	kept.Lock()
	defer kept.Unlock()
	fmt.Fprintf(&kept.text, "%s %v\n", event.Name(), event.Data)
	return nil
}

// runLeaky runs a configuration with the leaky provider, and returns the file with Caddy's
// log.
func runLeaky(t *testing.T, way string, apps ...string) (log string, err error) {
	t.Helper()
	folder := t.TempDir()
	log = filepath.Join(folder, "log")
	t.Setenv("LEAKY_TOKEN", leakyToken)
	t.Setenv("LEAKY_PASSWORD", leakyPassword)
	for name, content := range map[string]string{
		"key":         leakyKey + "\n",
		"long":        leakyKeyLong + "\n",
		"credentials": `{"type": "service_account", "private": {"secret": "inner-secret"}}`,
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	leaksIn.Store(way)
	select {
	case <-called: // by an earlier one
	default:
	}
	recordOf("leaky.example", families[0]).doubt() // or the world's DNS would be asked
	config := fmt.Sprintf(`{
		"admin": {"disabled": true, "config": {"persist": false}},
		"storage": {"module": "file_system", "root": %[1]q},
		"logging": {"logs": {"default": {"level": "DEBUG", "writer": {"output": "file", "filename": %[2]q}}}},
		"apps": {
			"events": {"subscriptions": [{"handlers": [{"handler": "keeper"}]}]},
			"ddns": {"domains": {"leaky.example": {
				"a": {"static": "203.0.113.5"},
				"zone": "example",
				"provider": {
					"name": "leaky",
					"api_token": "{env.LEAKY_TOKEN}",
					"account": {
						"user": "somebody",
						"password": "{env.LEAKY_PASSWORD}",
						"keys": ["{file.%[1]s/key}", "{file.%[1]s/long}"]
					},
					"header": "Bearer {env.LEAKY_TOKEN}",
					"credentials": "{file.%[1]s/credentials}",
					"pin": %[3]s
				}
			}}}
			%[4]s
		}
	}`, folder, log, leakyPIN, strings.Join(apps, ""))
	t.Cleanup(func() { caddy.Stop() })
	return log, caddy.Load([]byte(config), true)
}

// TestHiding has a provider of somebody else's show its secrets in errors in all the ways that
// there are, wherever they come from.
func TestHiding(t *testing.T) {
	for way, leak := range leaks {
		t.Run(way, func(t *testing.T) {
			log, err := runLeaky(t, way)
			if err != nil {
				t.Fatal(err)
			}
			said := "it has failed " + way
			var logged, event string
			for deadline := time.Now().Add(15 * time.Second); logged == "" || event == ""; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("nothing is said of it: %q, %q", logged, event)
				}
				logged, event = loggedError(t, log, said), keptEvent(said)
			}
			p := &leaky{APIToken: leakyToken, Header: "Bearer " + leakyToken, PIN: json.RawMessage(leakyPIN)}
			p.Account.User, p.Account.Password, p.Account.Keys = "somebody", leakyPassword, []string{leakyKey, leakyKeyLong}
			leaked, hidden := leak(p)
			if !strings.Contains(strings.ToLower(leaked.Error()), strings.ToLower(hidden)) {
				t.Fatalf("the error has no secret: %s", leaked)
			}
			for _, text := range []string{logged, event} {
				if strings.Contains(strings.ToLower(text), strings.ToLower(hidden)) || !strings.Contains(text, "REDACTED") {
					t.Errorf("it is said: %s", text)
				}
			}
		})
	}
}

// loggedError is the error of a line in a log of Caddy's that begins so.
func loggedError(t *testing.T, path, begin string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		var entry struct{ Error string }
		if json.Unmarshal([]byte(line), &entry) == nil && strings.HasPrefix(entry.Error, begin+":") {
			return entry.Error
		}
	}
	return ""
}

// keptEvent is the line of an event that has a text in it.
func keptEvent(text string) string {
	kept.Lock()
	defer kept.Unlock()
	_, event, _ := strings.Cut(kept.text.String(), text+":")
	return event
}

// A provider that does not even start.
func TestHidingAtTheStart(t *testing.T) {
	for _, step := range []string{"provision", "validate"} {
		t.Run(step, func(t *testing.T) {
			log, err := runLeaky(t, step)
			if err == nil || !strings.Contains(err.Error(), "REDACTED") || !strings.Contains(err.Error(), "leaky.example") {
				t.Errorf("got %v", err)
			}
			content, _ := os.ReadFile(log)
			for inner := err; inner != nil; inner = errors.Unwrap(inner) {
				for _, text := range []string{inner.Error(), string(content)} {
					if strings.Contains(text, `/en+with`) || strings.Contains(text, url.QueryEscape(leakyToken)) {
						t.Errorf("it is said: %s", text)
					}
				}
			}
		})
	}
}

// Interface guard
var _ caddyevents.Handler = (*keeper)(nil)
