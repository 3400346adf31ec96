package combinedlog

import (
	"context"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// done is when the entries of these tests are logged.
var done = time.Date(2026, time.November, 22, 11, 5, 33, 999e6, time.UTC)

// TestMain gives the tests a time zone whose offset is neither nothing nor
// positive nor whole.
func TestMain(m *testing.M) {
	time.Local = time.FixedZone("", -(3*3600 + 30*60))
	os.Exit(m.Run())
}

// asked returns a request as Caddy logs it. clientIP may be empty.
func asked(method, uri, proto, remote, clientIP string, header http.Header) caddyhttp.LoggableHTTPRequest {
	vars := map[string]any{}
	if clientIP != "" {
		vars[caddyhttp.ClientIPVarKey] = clientIP
	}
	r := &http.Request{
		Method: method, RequestURI: uri, Proto: proto, Host: "example.org",
		RemoteAddr: remote, Header: header,
	}
	ctx := context.WithValue(context.Background(), caddyhttp.VarsCtxKey, vars)
	return caddyhttp.LoggableHTTPRequest{Request: r.WithContext(ctx)}
}

// answered returns the fields that Caddy adds when a request is done.
func answered(user string, status, size int, took time.Duration) []zapcore.Field {
	return []zapcore.Field{
		zap.Int("bytes_read", 0),
		zap.String("user_id", user),
		zap.Duration("duration", took),
		zap.Int("size", size),
		zap.Int("status", status),
		zap.Object("resp_headers", caddyhttp.LoggableHTTPHeader{Header: http.Header{"Server": {"Caddy"}}}),
	}
}

// encode writes an entry as a logger does to which with was added.
func encode(t testing.TB, enc zapcore.Encoder, ent zapcore.Entry, with, fields []zapcore.Field) string {
	t.Helper()
	enc = enc.Clone()
	for _, f := range with {
		f.AddTo(enc)
	}
	line, err := enc.EncodeEntry(ent, fields)
	if err != nil {
		t.Fatal(err)
	}
	defer line.Free()
	return line.String()
}

func access(message string) zapcore.Entry {
	return zapcore.Entry{LoggerName: "http.log.access.log0", Time: done, Message: message}
}

func TestAccessLine(t *testing.T) {
	plainHeader := http.Header{"Referer": {"https://example.org/"}, "User-Agent": {"curl/8.5.0"}, "Cookie": {"a=b"}}
	get := asked("GET", "/a?b=c", "HTTP/2.0", "192.0.2.7:4711", "192.0.2.7", plainHeader)
	tests := []struct {
		name    string
		message string
		request caddyhttp.LoggableHTTPRequest
		fields  []zapcore.Field
		want    string
	}{
		{
			name: "plain", request: get, fields: answered("", 200, 512, 0),
			want: `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "GET /a?b=c HTTP/2.0" 200 512 "https://example.org/" "curl/8.5.0"`,
		},
		{
			name: "user", request: get, fields: answered("alice", 401, 512, 0),
			want: `192.0.2.7 - alice [22/Nov/2026:07:35:33 -0330] "GET /a?b=c HTTP/2.0" 401 512 "https://example.org/" "curl/8.5.0"`,
		},
		{
			name: "time of arrival", request: get, fields: answered("", 200, 512, 34*time.Second),
			want: `192.0.2.7 - - [22/Nov/2026:07:34:59 -0330] "GET /a?b=c HTTP/2.0" 200 512 "https://example.org/" "curl/8.5.0"`,
		},
		{
			name: "empty body", request: get, fields: answered("", 304, 0, 0),
			want: `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "GET /a?b=c HTTP/2.0" 304 - "https://example.org/" "curl/8.5.0"`,
		},
		{
			name:    "HEAD has no body",
			request: asked("HEAD", "/", "HTTP/1.1", "192.0.2.7:4711", "192.0.2.7", nil), fields: answered("", 200, 512, 0),
			want: `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "HEAD / HTTP/1.1" 200 - "-" "-"`,
		},
		{
			name:    "behind a trusted proxy",
			request: asked("GET", "/", "HTTP/1.1", "10.0.0.1:4711", "2001:db8::7", nil), fields: answered("", 200, 1, 0),
			want: `2001:db8::7 - - [22/Nov/2026:07:35:33 -0330] "GET / HTTP/1.1" 200 1 "-" "-"`,
		},
		{
			name:    "no client_ip",
			request: asked("GET", "/", "HTTP/3.0", "[2001:db8::1]:4711", "", nil), fields: answered("", 200, 1, 0),
			want: `2001:db8::1 - - [22/Nov/2026:07:35:33 -0330] "GET / HTTP/3.0" 200 1 "-" "-"`,
		},
		{
			name:    "no address, as over a Unix socket",
			request: asked("GET", "/", "HTTP/1.1", "", "", nil), fields: answered("", 200, 1, 0),
			want: `- - - [22/Nov/2026:07:35:33 -0330] "GET / HTTP/1.1" 200 1 "-" "-"`,
		},
		{
			name: "escapes",
			request: asked("GET", `/"\`, "HTTP/1.1", "192.0.2.7:4711", "", http.Header{
				"Referer":    {"\b\n\r\t\v\a\x00\x1f\x7f"},
				"User-Agent": {"Grüße\" \xff"},
			}),
			fields: answered("Jörg \"x\"\n", 200, 1, 0),
			want:   `192.0.2.7 - J\xc3\xb6rg \"x\"\n [22/Nov/2026:07:35:33 -0330] "GET /\"\\ HTTP/1.1" 200 1 "\b\n\r\t\v\x07\x00\x1f\x7f" "Gr\xc3\xbc\xc3\x9fe\" \xff"`,
		},
		{
			name:    "empty and repeated headers",
			request: asked("GET", "/", "HTTP/1.1", "192.0.2.7:4711", "", http.Header{"Referer": {""}, "User-Agent": {"a", "b"}}),
			fields:  answered("", 200, 1, 0),
			want:    `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "GET / HTTP/1.1" 200 1 "" "a, b"`,
		},
		{
			name:    "password in an absolute URI",
			request: asked("GET", "http://u:p:q@example.org/x@y:z", "HTTP/1.1", "192.0.2.7:4711", "", nil),
			fields:  answered("", 200, 1, 0),
			want:    `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "GET http://u:XXXXXXXX@example.org/x@y:z HTTP/1.1" 200 1 "-" "-"`,
		},
		{
			name:    "CONNECT is no password",
			request: asked("CONNECT", "example.org:443", "HTTP/1.1", "192.0.2.7:4711", "", nil), fields: answered("", 405, 0, 0),
			want: `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "CONNECT example.org:443 HTTP/1.1" 405 - "-" "-"`,
		},
		{
			name: "no handler answered, so net/http did", message: "NOP", request: get, fields: answered("", 0, 0, 0),
			want: `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "GET /a?b=c HTTP/2.0" 200 - "https://example.org/" "curl/8.5.0"`,
		},
		{
			name: "connection dropped", message: "handled request", request: get, fields: answered("", 0, 0, 0),
			want: `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "GET /a?b=c HTTP/2.0" - - "https://example.org/" "curl/8.5.0"`,
		},
		{
			name: "fields after a namespace are not the request's", request: get,
			fields: append(answered("", 200, 512, 0), zap.Namespace("x"), zap.Int("status", 1), zap.String("user_id", "bob")),
			want:   `192.0.2.7 - - [22/Nov/2026:07:35:33 -0330] "GET /a?b=c HTTP/2.0" 200 512 "https://example.org/" "curl/8.5.0"`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			request := zap.Object("request", tt.request)
			ways := map[string]string{
				"with the logger": encode(t, new(Encoder), access(tt.message), []zapcore.Field{request}, tt.fields),
				"with the entry":  encode(t, new(Encoder), access(tt.message), nil, append([]zapcore.Field{request}, tt.fields...)),
				"all with logger": encode(t, new(Encoder), access(tt.message), append([]zapcore.Field{request}, tt.fields...), nil),
				"field by field": encode(t, new(Encoder), access(tt.message), []zapcore.Field{
					zap.Object("request", zapcore.ObjectMarshalerFunc(tt.request.MarshalLogObject)),
				}, tt.fields),
			}
			for way, got := range ways {
				if got != tt.want+"\n" {
					t.Errorf("%s:\n got %s want %s", way, got, tt.want)
				}
			}
		})
	}
}

// TestWrapped has the line written through encoders that change fields.
func TestWrapped(t *testing.T) {
	request := asked("GET", "/a?token=x", "HTTP/1.1", "192.0.2.7:4711", "192.0.2.7",
		http.Header{"Referer": {"https://example.org/"}, "User-Agent": {"curl/8.5.0"}})
	tests := []struct {
		name, config, want string
	}{
		{
			name: "nothing filtered",
			config: `filter {
				wrap combined
			}`,
			want: `192.0.2.7 - alice [22/Nov/2026:07:35:32 -0330] "GET /a?token=x HTTP/1.1" 200 7 "https://example.org/" "curl/8.5.0"`,
		},
		{
			name: "masked, replaced, deleted",
			config: `filter {
				wrap combined
				request>client_ip ip_mask 16 32
				request>uri query {
					replace token REDACTED
				}
				request>headers>Referer delete
				request>headers>User-Agent replace someone
				user_id delete
			}`,
			want: `192.0.0.0 - - [22/Nov/2026:07:35:32 -0330] "GET /a?token=REDACTED HTTP/1.1" 200 7 "-" "someone"`,
		},
		{
			name: "appended",
			config: `append {
				wrap combined
				instance relay
			}`,
			want: `192.0.2.7 - alice [22/Nov/2026:07:35:32 -0330] "GET /a?token=x HTTP/1.1" 200 7 "https://example.org/" "curl/8.5.0"`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			enc := load(t, tt.config)
			with := []zapcore.Field{zap.Object("request", request)}
			for range 2 { // nothing of the first line may be in the second
				got := encode(t, enc, access("handled request"), with, answered("alice", 200, 7, time.Second))
				if got != tt.want+"\n" {
					t.Errorf("got %s want %s", got, tt.want)
				}
			}
		})
	}
}

// load returns the encoder that a Caddyfile's `format` has.
func load(t *testing.T, config string) zapcore.Encoder {
	t.Helper()
	d := caddyfile.NewTestDispenser(config)
	d.Next()
	module, err := caddyfile.UnmarshalModule(d, "caddy.logging.encoders."+d.Val())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	if p, ok := module.(caddy.Provisioner); ok {
		if err := p.Provision(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return module.(zapcore.Encoder)
}

// TestClones has two loggers of one parent keep their fields apart, and one
// encoder used by many goroutines, as Caddy does.
func TestClones(t *testing.T) {
	parent := new(Encoder)
	zap.String("shared", "yes").AddTo(parent)
	a, b := parent.Clone(), parent.Clone()
	zap.String("a", "1").AddTo(a)
	zap.Object("request", asked("GET", "/a", "HTTP/1.1", "192.0.2.1:1", "", nil)).AddTo(a)
	zap.Object("request", asked("GET", "/b", "HTTP/1.1", "192.0.2.2:1", "", nil)).AddTo(b)

	other := zapcore.Entry{LoggerName: "x", Time: done}
	if got := encode(t, b, other, nil, nil); strings.Contains(got, `"a"`) || !strings.Contains(got, `"shared":"yes"`) || !strings.Contains(got, "192.0.2.2") {
		t.Errorf("fields of another logger, or missing ones: %s", got)
	}
	if got := encode(t, parent, other, nil, nil); strings.Contains(got, "request") {
		t.Errorf("a child's request in its parent: %s", got)
	}

	want := encode(t, a, access(""), nil, answered("", 200, 1, 0))
	wantOther := encode(t, a, other, nil, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if got := encode(t, a, access(""), nil, answered("", 200, 1, 0)); got != want {
					t.Errorf("got %s want %s", got, want)
				}
				if got := encode(t, a, other, nil, nil); got != wantOther {
					t.Errorf("got %s want %s", got, wantOther)
				}
			}
		})
	}
	wg.Wait()
}

func TestUnmarshalCaddyfile(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{name: "bare", in: "combined"},
		{name: "argument", in: "combined vhost", want: `there is "vhost"`},
		{name: "option", in: "combined {\n time_format rfc3339\n}", want: `no option "time_format"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := new(Encoder).UnmarshalCaddyfile(caddyfile.NewTestDispenser(tt.in))
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}
