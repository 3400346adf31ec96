package testnet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// RelayUID is the user that relays run as: nobody, with one capability (to
// bind ports below 1024), as Caddy's own systemd unit has it.
const RelayUID = 65534

// Relay is our binary on the VM.
type Relay struct {
	*Process

	// Folder is the relay's own: its Caddyfile, keys, storage and logs.
	Folder string

	namespace *Namespace
	binary    string
}

// NewRelay prepares a relay in a namespace without starting it.
func NewRelay(t testing.TB, namespace *Namespace) *Relay {
	t.Helper()
	Need(t, "setpriv")
	r := &Relay{Folder: Folder(t), namespace: namespace, binary: Caddy(t)}
	if err := os.Chown(r.Folder, RelayUID, RelayUID); err != nil {
		t.Fatal(err)
	}
	return r
}

// UseBinary makes the relay run another binary than Caddy's.
func (r *Relay) UseBinary(path string) { r.binary = path }

// Secret writes a file into the relay's folder that only the relay may read,
// and returns its path.
func (r *Relay) Secret(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(r.Folder, name)
	WriteFile(t, path, []byte(content+"\n"), 0o600)
	if err := os.Chown(path, RelayUID, RelayUID); err != nil {
		t.Fatal(err)
	}
	return path
}

// Write writes the relay's Caddyfile and returns its path.
func (r *Relay) Write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(r.Folder, "Caddyfile")
	WriteFile(t, path, []byte(text), 0o644)
	return path
}

// Start runs the relay with a Caddyfile and returns when it serves.
func (r *Relay) Start(t testing.TB, caddyfile string) {
	t.Helper()
	path := r.Write(t, caddyfile)
	r.Process = Start(t, "relay", r.Command("run", "--config", path, "--adapter", "caddyfile"))
	r.WaitLog(t, 0, "serving initial configuration", 30*time.Second)
	t.Cleanup(func() {
		if race := dataRace(r.Log.String()); race != "" {
			t.Errorf("the race detector found in the relay:\n%s", race)
		}
		if panicked := panicPattern.FindString(r.Log.String()); panicked != "" {
			t.Errorf("the relay panicked: %s", panicked)
		}
	})
}

// panicPattern finds a panic, whether it ended the process or net/http caught
// it.
var panicPattern = regexp.MustCompile(`(?m)^panic: .*|http: panic serving.*|^fatal error: .*`)

// dataRace is the first report of the race detector in a log, or nothing.
func dataRace(log string) string {
	_, report, found := strings.Cut(log, "WARNING: DATA RACE")
	if !found {
		return ""
	}
	report, _, _ = strings.Cut(report, "==================")
	return report
}

// Command prepares a command of the relay's binary, such as `validate`, run
// as the relay's user in its namespace.
func (r *Relay) Command(args ...string) *exec.Cmd {
	privileges := []string{
		"--reuid", strconv.Itoa(RelayUID), "--regid", strconv.Itoa(RelayUID), "--clear-groups",
		"--no-new-privs",
		"--bounding-set", "-all,+net_bind_service",
		"--inh-caps", "-all,+net_bind_service",
		"--ambient-caps", "-all,+net_bind_service",
		r.binary,
	}
	cmd := r.namespace.Command("setpriv", append(privileges, args...)...)
	cmd.Dir = r.Folder
	cmd.Env = append(os.Environ(),
		"HOME="+r.Folder,
		"XDG_DATA_HOME="+filepath.Join(r.Folder, "data"),
		"XDG_CONFIG_HOME="+filepath.Join(r.Folder, "config"),
		"HOMEWARD_FOLDER="+r.Folder,
	)
	return cmd
}

// Run runs a command of the relay's binary to its end and returns what it
// printed. It is killed after a minute.
func (r *Relay) Run(args ...string) (output string, err error) {
	cmd := r.Command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err = cmd.Wait()
	return out.String(), err
}

// Reload gives the running relay another Caddyfile with `caddy reload`, and
// returns what that printed.
func (r *Relay) Reload(t testing.TB, caddyfile string) (output string, err error) {
	t.Helper()
	path := r.Write(t, caddyfile)
	return r.Run("reload", "--config", path, "--adapter", "caddyfile", "--force")
}

// Admin asks the relay's admin endpoint, at its default address, and returns
// the body.
func (r *Relay) Admin(t testing.TB, path string) string {
	t.Helper()
	transport := &http.Transport{DialContext: r.namespace.Dial, DisableKeepAlives: true}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost:2019"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatalf("asking the relay's admin endpoint: %v", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("admin endpoint: GET %s: %s, %v\n%s", path, response.Status, err, body)
	}
	return string(body)
}

// Goroutines is the relay's goroutines: how many, and the profile that tells
// where they are.
func (r *Relay) Goroutines(t testing.TB) (count int, profile string) {
	t.Helper()
	profile = r.Admin(t, "/debug/pprof/goroutine?debug=1")
	if _, err := fmt.Sscanf(profile, "goroutine profile: total %d", &count); err != nil {
		t.Fatalf("reading the goroutine profile: %v", err)
	}
	return count, profile
}
