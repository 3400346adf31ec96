package ddns

import (
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/filestorage"

	_ "github.com/homeward-relay/homeward/modules/duckdns"
	"github.com/homeward-relay/homeward/tests/adapttest"
)

func TestCaddyfile(t *testing.T) { adapttest.Run(t, "testdata", nil) }
