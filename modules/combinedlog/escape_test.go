package combinedlog

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// combined is a line as a strict reader sees it: what is quoted ends at the
// first quote that has no backslash before it.
var combined = regexp.MustCompile(`^(\S+) - ((?:[^"\\\n]|\\.)*) \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] ` +
	`"((?:[^"\\\n]|\\.)*)" (\d+|-) (\d+|-) "((?:[^"\\\n]|\\.)*)" "((?:[^"\\\n]|\\.)*)"\n$`)

// unescape undoes appendEscaped. It is written apart from it.
func unescape(t *testing.T, s string) string {
	t.Helper()
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out.WriteByte(s[i])
			continue
		}
		i++
		if c := strings.IndexByte(`bnrtv"\`, s[i]); c >= 0 {
			out.WriteByte("\b\n\r\t\v\"\\"[c])
			continue
		}
		if s[i] != 'x' {
			t.Fatalf("an escape that Apache does not write: %q", s)
		}
		v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		out.WriteByte(byte(v))
		i += 2
	}
	return out.String()
}

// FuzzLine has whatever a client sends come back from the line that it made,
// so that it cannot have ended a field or a line, or begun another.
func FuzzLine(f *testing.F) {
	forged := "\" 200 1 \"-\" \"-\"\n203.0.113.9 - - [22/Nov/2026:12:05:33 +0000] \"GET / HTTP/1.1\" 404 - \"-\" \"EmailCollector"
	f.Add("GET", "/", "HTTP/1.1", "", "", "")
	f.Add("GET", "/"+forged, "HTTP/1.1", forged, forged, forged)
	f.Add("GET\r\n", "http://u:p@h/\\", "HTTP/1.1\\", "\\", "\\\"", "a\x00\xff\x7f\x80\u2028")
	f.Fuzz(func(t *testing.T, method, uri, proto, user, referer, agent string) {
		request := asked(method, uri, proto, "192.0.2.7:4711", "", http.Header{"Referer": {referer}, "User-Agent": {agent}})
		line := encode(t, new(Encoder), access("handled request"),
			[]zapcore.Field{zap.Object("request", request)}, answered(user, 200, 1, time.Second))
		for i, c := range []byte(line) {
			if (c < ' ' || c > '~') && (c != '\n' || i != len(line)-1) {
				t.Fatalf("byte %#x at %d: %q", c, i, line)
			}
		}
		got := combined.FindStringSubmatch(line)
		if got == nil {
			t.Fatalf("no combined line: %q", line)
		}
		if user == "" {
			user = "-"
		}
		if from, to, ok := password(uri); ok {
			uri = uri[:from] + "XXXXXXXX" + uri[to:]
		}
		want := []string{"192.0.2.7", user, method + " " + uri + " " + proto, "200", "1", referer, agent}
		if method == http.MethodHead {
			want[4] = "-"
		}
		for i := range want {
			if v := unescape(t, got[i+1]); v != want[i] {
				t.Errorf("field %d: %q, want %q", i, v, want[i])
			}
		}
	})
}

func TestPassword(t *testing.T) {
	tests := []struct{ in, want string }{
		{"/u:p@h", ""},
		{"*", ""},
		{"h:443", ""},
		{"http://h/", ""},
		{"http://u@h/", ""},
		{"http://h/u:p@x", ""},
		{"http://h?u:p@x", ""},
		{"http://u:p@h/", "p"},
		{"http://u:p@h", "p"},
		{"http://u:p@q@h/", "p@q"},
		{"http://u:@h/", "(empty)"},
		{"u:p@h:443", "p"},
		{"", ""},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			from, to, ok := password(tt.in)
			got := tt.in[from:to]
			if ok && got == "" {
				got = "(empty)"
			}
			if got != tt.want || ok != (tt.want != "") {
				t.Errorf("got %q %v, want %q", got, ok, tt.want)
			}
		})
	}
}
