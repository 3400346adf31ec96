package ddns

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

func init() { caddy.RegisterModule(new(broken)) }

// broken is an app that does not start, once the provider has been called or there has been
// time for it.
type broken struct{}

func (*broken) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "broken", New: func() caddy.Module { return new(broken) }}
}

func (*broken) Start() error {
	select {
	case <-called:
		called <- struct{}{}
	case <-time.After(50 * time.Millisecond):
	}
	return errors.New("it is broken")
}

func (*broken) Stop() error { return nil }

// A configuration that does not come into force sets no record. Caddy starts apps in any
// order.
func TestNothingIsSetInVain(t *testing.T) {
	for range 8 {
		if _, err := runLeaky(t, "short", `, "broken": {}`); err == nil || !strings.Contains(err.Error(), "it is broken") {
			t.Fatalf("got %v", err)
		}
		select {
		case <-called:
			t.Fatal("the provider has been called")
		default:
		}
	}
}

// Interface guard
var _ caddy.App = (*broken)(nil)
