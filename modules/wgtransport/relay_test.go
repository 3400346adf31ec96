package wgtransport

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// relay is a Caddy in this process with one site that any host gets to.
type relay struct {
	address string // of the site, as last loaded
	log     string // path of the log
	name    string // of the transport module
	globals string // Caddyfile lines for the global options
}

// freePort is a port that nobody has.
func freePort(t *testing.T) string { return strconv.Itoa(testnet.FreePort(t, "tcp")) }

// newRelay is a relay over a fresh loopback.
func newRelay(t *testing.T) (*relay, *loopback) {
	t.Helper()
	tunneled = new(loopback)
	trapped := proxyTrap.hits.Load()
	t.Cleanup(func() {
		if hits := proxyTrap.hits.Load() - trapped; hits != 0 {
			t.Errorf("the environment's proxy was used %d times", hits)
		}
	})
	return prepareRelay(t, "wireguard_loopback", ""), tunneled
}

func prepareRelay(t *testing.T, name, globals string) *relay {
	t.Helper()
	t.Cleanup(func() { _ = caddy.Stop() })
	return &relay{
		log:     filepath.Join(t.TempDir(), "log.json"),
		name:    name,
		globals: globals,
	}
}

// load runs the site with a reverse_proxy to upstreams, whose block holds
// proxy, and the transport's transport. It may be called again.
func (r *relay) load(t *testing.T, upstreams, proxy, transport string) error {
	t.Helper()
	// A port of its own for each configuration: Caddy opens a second socket
	// for a port that stays, and resets what waits in the first one's queue.
	r.address = "127.0.0.1:" + freePort(t)
	text := fmt.Sprintf(`{
	admin off
	auto_https off
	persist_config off
	grace_period 5s
	log {
		output file %s
		format json
		level DEBUG
	}
	%s
}
http://%s, http://:%s {
	log
	reverse_proxy %s {
		%s
		transport %s {
			%s
		}
	}
}
`, r.log, r.globals, r.address, r.address[strings.LastIndex(r.address, ":")+1:], upstreams, proxy, r.name, transport)
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	return caddy.Load(adapted, true)
}

func (r *relay) mustLoad(t *testing.T, upstreams, proxy, transport string) {
	t.Helper()
	if err := r.load(t, upstreams, proxy, transport); err != nil {
		t.Fatal(err)
	}
}

// do sends a request for host and returns the status, what home saw if it
// answered, and the header.
func (r *relay) do(t *testing.T, method, host, path, body string) (int, sight, http.Header) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return 0, sight{}, nil
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
		return 0, sight{}, nil
	}
	var s sight
	if resp.Header.Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(content, &s); err != nil {
			t.Fatalf("%q: %v", content, err)
		}
	}
	return resp.StatusCode, s, resp.Header
}

func (r *relay) get(t *testing.T, host, path string) (int, sight) {
	t.Helper()
	status, s, _ := r.do(t, http.MethodGet, host, path, "")
	return status, s
}

// logged waits until a line of the log has all the words.
func (r *relay) logged(t *testing.T, words ...string) {
	t.Helper()
	r.loggedTimes(t, 1, words...)
}

func (r *relay) loggedTimes(t *testing.T, times int, words ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d log lines with %q", times, words), func() bool {
		content, err := os.ReadFile(r.log)
		if err != nil {
			return false
		}
		found := 0
	lines:
		for line := range bytes.Lines(content) {
			for _, word := range words {
				if !bytes.Contains(line, []byte(word)) {
					continue lines
				}
			}
			found++
		}
		return found >= times
	})
}

func eventually(t *testing.T, what string, true_ func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !true_() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// upgradesEnd waits until reverse_proxy has let go of the upgraded connections,
// whose client's side is closed. What it does when it is stopped before is not
// free of data races: Caddy v2.11.9 writes a close frame to a connection whose
// copying it has not waited for.
func upgradesEnd(t *testing.T) {
	t.Helper()
	eventually(t, "upgraded connections to end", func() bool {
		stacks := make([]byte, 1<<22)
		return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("handleUpgradeResponse"))
	})
}

// send sends a request and returns the status and what home saw.
func (r *relay) send(t *testing.T, req *http.Request) (int, sight) {
	t.Helper()
	status, s, err := try(req)
	if err != nil {
		t.Fatal(err)
	}
	return status, s
}

func try(req *http.Request) (int, sight, error) {
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0, sight{}, err
	}
	defer resp.Body.Close()
	var s sight
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(&s); err != nil && err != io.EOF {
			return 0, sight{}, err
		}
	}
	return resp.StatusCode, s, nil
}
