package combinedlog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// freePort returns a TCP port that nobody has.
func freePort(t *testing.T) string { return strconv.Itoa(testnet.FreePort(t, "tcp")) }

// startCaddy runs a Caddyfile in this process. The returned function stops it,
// after which all its logs are written.
func startCaddy(t *testing.T, caddyfile string) (stop func()) {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		if !strings.Contains(w.Message, "not formatted") {
			t.Log(w)
		}
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			if err := caddy.Stop(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

// exchange sends one HTTP/1 request as it is, and returns the answer's status
// when the server has closed the connection: by then Caddy has logged it.
func exchange(t *testing.T, address, request string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	answer := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answer, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the answer to %q: %v", request, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	_, _ = io.Copy(io.Discard, answer)
	return resp.StatusCode
}

// site is a Caddyfile whose access log is file. It answers, refuses, rewrites,
// drops and leaves alone.
func site(port, file string) string {
	return `{
	admin off
	auto_https off
	persist_config off
	storage file_system ` + filepath.Dir(file) + `
	servers {
		protocols h1 h2c
		trusted_proxies static 127.0.0.1/32
	}
}
http://:` + port + ` {
	log {
		output file ` + file + `
		format combined
	}
	handle /rewritten* {
		rewrite * /elsewhere
		respond "rewritten"
	}
	handle /private {
		basic_auth {
			"alice in \"chains\"" ` + secretHash + `
		}
		respond "private"
	}
	handle /none {
	}
	handle /dropped {
		abort
	}
	handle /missing* {
		respond 404
	}
	handle /broken {
		error "broken" 500
	}
	handle {
		respond "hello"
	}
}
`
}

// secretHash is bcrypt of "secret", at the least cost: it is hashed per request.
const secretHash = `$2y$04$DBs8ISlAnsD9ttwwXI6sOuIgsao0f3ihmQUQ1UaZSgOrYNVWviIWu`

// TestServer has a real Caddy write the log, and programs that know nothing of
// Caddy read it.
func TestServer(t *testing.T) {
	port, file := freePort(t), filepath.Join(t.TempDir(), "access.log")
	stop := startCaddy(t, site(port, file))
	address := "127.0.0.1:" + port

	const (
		close  = "Host: localhost\r\nConnection: close\r\n"
		forged = `" 200 1 "-" "-" 203.0.113.9 - - [22/Nov/2026:12:05:33 +0000] "GET / HTTP/1.1" 404 - "-" "EmailCollector`
	)
	tests := []struct {
		name, request string
		status        int
		want          string // with T for the time
	}{
		{"plain", "GET / HTTP/1.1\r\n" + close + "\r\n", 200, `127.0.0.1 - - T "GET / HTTP/1.1" 200 5 "-" "-"`},
		{"headers", "GET /a?b=%22c HTTP/1.1\r\n" + close + "Referer: http://x/\r\nUser-Agent: curl \"8\"\r\n\r\n", 200,
			`127.0.0.1 - - T "GET /a?b=%22c HTTP/1.1" 200 5 "http://x/" "curl \"8\""`},
		{"HEAD", "HEAD / HTTP/1.0\r\n\r\n", 200, `127.0.0.1 - - T "HEAD / HTTP/1.0" 200 - "-" "-"`},
		{"what the client asked, not what it was rewritten to", "GET /rewritten?x HTTP/1.1\r\n" + close + "\r\n", 200,
			`127.0.0.1 - - T "GET /rewritten?x HTTP/1.1" 200 9 "-" "-"`},
		{"user", "GET /private HTTP/1.1\r\n" + close + "Authorization: Basic YWxpY2UgaW4gImNoYWlucyI6c2VjcmV0\r\n\r\n", 200,
			`127.0.0.1 - alice in \"chains\" T "GET /private HTTP/1.1" 200 7 "-" "-"`},
		{"no user", "GET /private HTTP/1.1\r\n" + close + "\r\n", 401, `127.0.0.1 - - T "GET /private HTTP/1.1" 401 - "-" "-"`},
		{"no handler", "GET /none HTTP/1.1\r\n" + close + "\r\n", 200, `127.0.0.1 - - T "GET /none HTTP/1.1" 200 - "-" "-"`},
		{"missing", "GET /missing HTTP/1.1\r\n" + close + "\r\n", 404, `127.0.0.1 - - T "GET /missing HTTP/1.1" 404 - "-" "-"`},
		{"error", "GET /broken HTTP/1.1\r\n" + close + "\r\n", 500, `127.0.0.1 - - T "GET /broken HTTP/1.1" 500 - "-" "-"`},
		{"behind a proxy", "GET / HTTP/1.1\r\n" + close + "X-Forwarded-For: 2001:db8::7\r\nUser-Agent: EmailCollector\r\n\r\n", 200,
			`2001:db8::7 - - T "GET / HTTP/1.1" 200 5 "-" "EmailCollector"`},
		{"bad bot", "GET / HTTP/1.1\r\n" + close + "X-Forwarded-For: 198.51.100.8\r\nUser-Agent: EmailCollector\r\n\r\n", 200,
			`198.51.100.8 - - T "GET / HTTP/1.1" 200 5 "-" "EmailCollector"`},
		{"forged line", "GET / HTTP/1.1\r\n" + close + "X-Forwarded-For: 192.0.2.66\r\nUser-Agent: " + forged + "\r\n\r\n", 200,
			`192.0.2.66 - - T "GET / HTTP/1.1" 200 5 "-" "` + strings.ReplaceAll(forged, `"`, `\"`) + `"`},
	}
	before := time.Now().Truncate(time.Second)
	for _, tt := range tests {
		if got := exchange(t, address, tt.request); got != tt.status {
			t.Errorf("%s: status %d, want %d", tt.name, got, tt.status)
		}
	}
	stop()
	lines := readLines(t, file)
	if len(lines) != len(tests) {
		t.Fatalf("%d lines for %d requests:\n%s", len(lines), len(tests), strings.Join(lines, "\n"))
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, at := cutTime(t, lines[i])
			if got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
			when, err := time.Parse(timeLayout, at)
			if err != nil || when.Before(before) || when.After(time.Now()) || !strings.HasSuffix(at, "-0330]") {
				t.Errorf("time %s (%v)", at, err)
			}
		})
	}

	t.Run("goaccess", func(t *testing.T) {
		out := run(t, "goaccess", file, "--log-format=COMBINED", "--no-global-config", "--output=json", "-o", "-")
		var report struct {
			General struct {
				Total  int `json:"total_requests"`
				Valid  int `json:"valid_requests"`
				Failed int `json:"failed_requests"`
			} `json:"general"`
			Status struct {
				Data []struct {
					Items []struct {
						Hits struct{ Count int }
						Data string
					}
				}
			} `json:"status_codes"`
		}
		if err := json.Unmarshal(out, &report); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if g := report.General; g.Total != len(tests) || g.Valid != len(tests) || g.Failed != 0 {
			t.Errorf("requests %+v, want %d valid ones", g, len(tests))
		}
		got := map[string]int{}
		for _, class := range report.Status.Data {
			for _, status := range class.Items {
				got[status.Data[:3]] = status.Hits.Count
			}
		}
		want := map[string]int{}
		for _, tt := range tests {
			want[fmt.Sprint(tt.status)]++
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("status codes %v, want %v", got, want)
		}
	})

	t.Run("fail2ban", func(t *testing.T) {
		out := string(run(t, "fail2ban-regex", "--print-all-matched", file, "apache-badbots"))
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^Lines: %d lines, 0 ignored, 3 matched, %d missed`, len(tests), len(tests)-3)).MatchString(out) {
			t.Errorf("want three matches:\n%s", out)
		}
		out = string(run(t, "fail2ban-regex", "--out", "ip", file, "apache-badbots"))
		// Whoever forges a line is banned for it, and not whom it names.
		if got := strings.Fields(out); fmt.Sprint(got) != "[2001:db8::7 198.51.100.8 192.0.2.66]" {
			t.Errorf("bans %v", got)
		}
	})
}

// TestDropped has a request that got no answer, which GoAccess cannot count.
func TestDropped(t *testing.T) {
	port, file := freePort(t), filepath.Join(t.TempDir(), "access.log")
	stop := startCaddy(t, site(port, file))
	if resp, err := http.Get("http://127.0.0.1:" + port + "/dropped"); err == nil {
		resp.Body.Close()
		t.Fatalf("got an answer: %s", resp.Status)
	}
	stop()
	lines := readLines(t, file)
	if len(lines) == 0 {
		t.Fatal("no line")
	}
	for _, line := range lines { // Go's client tries again
		if got, _ := cutTime(t, line); got != `127.0.0.1 - - T "GET /dropped HTTP/1.1" - - "-" "Go-http-client/1.1"` {
			t.Errorf("got %s", got)
		}
	}
}

// TestGlobalLog has the format on the log of everything.
func TestGlobalLog(t *testing.T) {
	port, file := freePort(t), filepath.Join(t.TempDir(), "all.log")
	stop := startCaddy(t, `{
	admin off
	auto_https off
	persist_config off
	log {
		output file `+file+`
		format combined
	}
}
http://:`+port+` {
	log
	reverse_proxy 127.0.0.1:`+freePort(t)+`
}
`)
	if got := exchange(t, "127.0.0.1:"+port, "GET /x HTTP/1.0\r\n\r\n"); got != 502 {
		t.Errorf("status %d", got)
	}
	stop()
	var access, failed int
	for _, line := range readLines(t, file) {
		var entry struct {
			Logger, Msg string
			Status      int
			Request     struct{ URI string }
		}
		switch {
		case combined.MatchString(line + "\n"):
			access++
		case json.Unmarshal([]byte(line), &entry) != nil:
			t.Errorf("neither combined nor JSON: %s", line)
		case entry.Logger == "http.log.error":
			failed++
			if entry.Status != 502 || entry.Request.URI != "/x" || !strings.Contains(entry.Msg, "connection refused") {
				t.Errorf("not all of the error: %s", line)
			}
		}
	}
	if access != 1 || failed != 1 {
		t.Errorf("%d access lines and %d errors, want one each", access, failed)
	}
}

func readLines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

var timeField = regexp.MustCompile(`\[[^]]*\]`)

// cutTime puts T in place of the time in a line.
func cutTime(t *testing.T, line string) (rest, at string) {
	t.Helper()
	loc := timeField.FindStringIndex(line)
	if loc == nil {
		t.Fatalf("no time in %s", line)
	}
	return line[:loc[0]] + "T" + line[loc[1]:], line[loc[0]:loc[1]]
}

// run returns what a program prints, or skips the test where it is missing.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", name, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes()
}
