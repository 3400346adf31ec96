package congestion

import (
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard"

	"github.com/homeward-relay/homeward/tests/adapttest"
)

func TestCaddyfile(t *testing.T) { adapttest.Run(t, "testdata", nil) }

// What only the JSON can say is refused in the same words.
func TestValidate(t *testing.T) {
	for algorithm, ok := range map[string]bool{"": true, "cubic": true, "no name": false} {
		t.Run(algorithm, func(t *testing.T) {
			if err := (&ListenerWrapper{Algorithm: algorithm}).Validate(); (err == nil) != ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
