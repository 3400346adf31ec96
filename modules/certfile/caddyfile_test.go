package certfile

import (
	"path/filepath"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/filestorage"

	"github.com/homeward-relay/homeward/tests/adapttest"
)

func TestCaddyfile(t *testing.T) {
	adapttest.Run(t, "testdata", func(t *testing.T, dir string) {
		ecdsaPair(t, domain).write(t, dir)
		writeFile(t, filepath.Join(dir, "other.pem"), ecdsaPair(t, domain).key)
	})
}
