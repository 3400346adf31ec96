package combinedlog

import (
	"net/http"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// BenchmarkEncode has what one access line costs, from cloning the logger's
// encoder to the finished line, beside Caddy's own JSON.
func BenchmarkEncode(b *testing.B) {
	header := http.Header{
		"Referer": {"https://example.org/"}, "User-Agent": {"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"},
		"Accept": {"*/*"}, "Accept-Encoding": {"gzip, br, zstd"}, "Accept-Language": {"de,en"}, "Cookie": {"a=b"},
	}
	request := zap.Object("request", asked("GET", "/a/b/c?d=e", "HTTP/2.0", "192.0.2.7:4711", "192.0.2.7", header))
	fields := answered("alice", 200, 5120, 20*time.Millisecond)
	for name, enc := range map[string]zapcore.Encoder{"combined": new(Encoder), "json": jsonEncoder(b)} {
		b.Run(name, func(b *testing.B) {
			ent := access("handled request")
			b.ReportAllocs()
			for b.Loop() {
				e := enc.Clone()
				request.AddTo(e)
				line, err := e.EncodeEntry(ent, fields)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(line.Len()))
				line.Free()
			}
		})
	}
}

func jsonEncoder(t testing.TB) zapcore.Encoder {
	t.Helper()
	enc := new(logging.JSONEncoder)
	if err := enc.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return enc
}
