package combinedlog

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// apacheModules is where Debian and Fedora keep them.
var apacheModules = []string{"/usr/lib/apache2/modules", "/usr/lib64/httpd/modules"}

// TestAsApache sends the same bytes to a real Apache and to Caddy, which serve
// the same file, and compares their logs.
func TestAsApache(t *testing.T) {
	// Not t.TempDir, which only we may enter: Apache serves as another user.
	dir, err := os.MkdirTemp("", "combinedlog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "file.txt"), "hello\n")
	users := []string{"alice", `a"b\c`, "Jörg Müller", "tab\there"}
	apache, apacheLog, stopApache := startApache(t, dir, users)

	caddyLog := filepath.Join(dir, "caddy.log")
	port := freePort(t)
	var accounts strings.Builder
	for _, user := range users {
		fmt.Fprintf(&accounts, "\t\t\t`%s` %s\n", user, secretHash)
	}
	stopCaddy := startCaddy(t, `{
	admin off
	auto_https off
	persist_config off
	storage file_system `+dir+`
	servers {
		protocols h1 h2c
	}
}
http://:`+port+` {
	log {
		output file `+caddyLog+`
		format combined
	}
	root `+dir+`
	route {
		basic_auth /private* {
`+accounts.String()+`		}
		@post method POST
		respond @post "hello!"
		rewrite * /file.txt
		file_server
	}
}
`)

	const end = "Host: localhost\r\nConnection: close\r\n"
	requests := []string{
		"GET / HTTP/1.1\r\n" + end + "\r\n",
		"GET / HTTP/1.0\r\n\r\n",
		"HEAD / HTTP/1.1\r\n" + end + "\r\n",
		"POST /form HTTP/1.1\r\n" + end + "Content-Length: 3\r\n\r\na=b",
		"GET /a/../b//c;d?e=f&g=%00%22#h HTTP/1.1\r\n" + end + "\r\n",
		"GET /a\"b\\c HTTP/1.1\r\n" + end + "\r\n",
		"GET /ä HTTP/1.1\r\n" + end + "\r\n",
		"GET http://localhost/x HTTP/1.1\r\n" + end + "\r\n",
		"GET http://u:p@localhost/x?y HTTP/1.1\r\n" + end + "\r\n",
		"GET http://u@localhost/x HTTP/1.1\r\n" + end + "\r\n",
		"GET / HTTP/1.1\r\n" + end + "Range: bytes=1-2\r\n\r\n",
		"GET / HTTP/1.1\r\n" + end + "User-Agent: a\"b\\c\td \x80\xff é\r\nReferer: \r\n\r\n",
		"GET / HTTP/1.1\r\n" + end + "User-Agent:   spaces inside  and around \t \r\nReferer: a\r\nReferer: b\r\n\r\n",
		"GET /private HTTP/1.1\r\n" + end + "User-Agent: " + strings.Repeat("x", 2000) + "\r\nAuthorization: " + basic(users[0]) + "\r\n\r\n",
	}
	for _, user := range users[1:] {
		requests = append(requests, "GET /private HTTP/1.1\r\n"+end+"Authorization: "+basic(user)+"\r\n\r\n")
	}
	sent := len(requests)
	for _, request := range requests {
		a, c := exchange(t, apache, request), exchange(t, "127.0.0.1:"+port, request)
		if a != c {
			t.Errorf("%q: Apache says %d and Caddy %d", request, a, c)
		}
	}
	t.Run("h2c", func(t *testing.T) {
		for _, address := range []string{apache, "127.0.0.1:" + port} {
			getH2C(t, "http://"+address+"/two?x=%22")
		}
		sent++
	})
	// Of HTTP/2 Apache logs a request after it has answered, and not once it stops.
	testnet.Eventually(t, 20*time.Second, func() error {
		if logged := len(readLines(t, apacheLog)); logged < sent {
			return fmt.Errorf("Apache has logged %d requests of %d", logged, sent)
		}
		return nil
	})
	stopApache()
	stopCaddy()

	want, got := readLines(t, apacheLog), readLines(t, caddyLog)
	if len(got) != sent || len(want) != sent {
		t.Fatalf("%d requests, %d lines of Apache and %d of Caddy:\n%s\n\n%s", sent, len(want), len(got), strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	// Apache may log a request after it has answered the next.
	var wantTimes, gotTimes []string
	for i := range got {
		var at string
		want[i], at = cutTime(t, want[i])
		wantTimes = append(wantTimes, at)
		got[i], at = cutTime(t, got[i])
		gotTimes = append(gotTimes, at)
	}
	slices.Sort(want)
	slices.Sort(got)
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("\nApache %s\n Caddy %s", want[i], got[i])
		}
		// They answered one after the other, so times may differ by a second.
		at, errA := time.Parse(timeLayout, wantTimes[i])
		ct, errC := time.Parse(timeLayout, gotTimes[i])
		if errA != nil || errC != nil || ct.Sub(at).Abs() > 10*time.Second || at.Format("-0700") != ct.Format("-0700") {
			t.Errorf("Apache's time %s, Caddy's %s", wantTimes[i], gotTimes[i])
		}
	}
}

func basic(user string) string {
	r, _ := http.NewRequest(http.MethodGet, "/", nil)
	r.SetBasicAuth(user, "secret")
	return r.Header.Get("Authorization")
}

func getH2C(t *testing.T, url string) {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "h2")
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		t.Errorf("%s %s", resp.Proto, resp.Status)
	}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// startApache runs Apache with the format of its own documentation. The
// returned function stops it in good order, after which its log is written.
func startApache(t *testing.T, dir string, users []string) (address, logFile string, stop func()) {
	t.Helper()
	var program, modules string
	for _, name := range []string{"apache2", "httpd"} {
		if p, err := exec.LookPath(name); err == nil {
			program = p
			break
		}
	}
	for _, m := range apacheModules {
		if _, err := os.Stat(filepath.Join(m, "mod_http2.so")); err == nil {
			modules = m
		}
	}
	if program == "" || modules == "" {
		t.Skip("Apache with mod_http2 is not installed")
	}
	var passwords, loads strings.Builder
	for _, user := range users {
		fmt.Fprintf(&passwords, "%s:%s\n", user, secretHash)
	}
	write(t, filepath.Join(dir, "passwords"), passwords.String())
	for _, m := range []string{"mpm_event", "authz_core", "authn_core", "authn_file", "auth_basic", "authz_user", "alias", "http2"} {
		fmt.Fprintf(&loads, "LoadModule %s_module %s/mod_%s.so\n", m, modules, m)
	}
	identity := ""
	if os.Geteuid() == 0 {
		identity = "User nobody\nGroup nogroup\n"
	}
	address, logFile = "127.0.0.1:"+freePort(t), filepath.Join(dir, "apache.log")
	config := filepath.Join(dir, "apache.conf")
	write(t, config, loads.String()+identity+`
ServerRoot `+dir+`
ServerName localhost
Listen `+address+`
PidFile `+dir+`/apache.pid
ErrorLog `+dir+`/apache-error.log
DefaultRuntimeDir `+dir+`
Protocols h2c http/1.1
HttpProtocolOptions Unsafe
AliasMatch ^/ `+dir+`/file.txt
<Location /private>
	AuthType Basic
	AuthName x
	AuthUserFile `+dir+`/passwords
	Require valid-user
</Location>
LogFormat "%h %l %u %t \"%r\" %>s %b \"%{Referer}i\" \"%{User-Agent}i\"" combined
CustomLog `+logFile+` combined
`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	cmd := exec.CommandContext(ctx, program, "-f", config, "-D", "FOREGROUND")
	cmd.Env = append(os.Environ(), "TZ=XYZ3:30") // as TestMain: in POSIX, west is positive
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	for ctx.Err() == nil {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return address, logFile, stop
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	log, _ := os.ReadFile(filepath.Join(dir, "apache-error.log"))
	t.Fatalf("Apache does not listen:\n%s", log)
	return "", "", nil
}
