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
	"slices"
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
	around    []string
	caps      string
	binary    string
	roots     string
	secrets   []string
	log       *Log
}

// NewRelay prepares a relay in a namespace without starting it.
func NewRelay(t testing.TB, namespace *Namespace) *Relay {
	t.Helper()
	Need(t, "setpriv")
	r := &Relay{Folder: Folder(t), namespace: namespace, binary: Caddy(t), caps: "-all,+net_bind_service", log: new(Log)}
	if err := os.Chown(r.Folder, RelayUID, RelayUID); err != nil {
		t.Fatal(err)
	}
	return r
}

// UseBinary makes the relay run another binary than Caddy's.
func (r *Relay) UseBinary(path string) { r.binary = path }

// Surround makes a command run whatever the relay runs from now on: as root,
// with the relay's own command line as its further arguments. It may change
// what the relay finds around it, such as its mounts, which are its own.
func (r *Relay) Surround(command ...string) { r.around = command }

// DropAll takes the relay's last capability. Its host lets every user bind low
// ports instead.
func (r *Relay) DropAll(t testing.TB) {
	t.Helper()
	r.caps = "-all"
	r.namespace.Sysctl(t, "net.ipv4.ip_unprivileged_port_start", "0")
}

// Privilege is what makes the running process more than any other, as
// /proc/PID/status has it: nothing if it is nobody's and has no capability.
func (r *Relay) Privilege(t testing.TB) (privilege []string) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.PID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		name, values, _ := strings.Cut(strings.TrimSpace(line), ":")
		nothing := ""
		switch name {
		case "Uid", "Gid":
			nothing = strconv.Itoa(RelayUID)
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			nothing = "0000000000000000"
		default:
			continue
		}
		for _, value := range strings.Fields(values) {
			if value != nothing {
				privilege = append(privilege, name+" "+value)
			}
		}
	}
	return privilege
}

// At is the same relay, with the same files, in another namespace.
func (r *Relay) At(namespace *Namespace) *Relay {
	other := *r
	other.Process, other.namespace, other.log = nil, namespace, new(Log)
	return &other
}

// TrustRoots makes the relay trust the CA in a PEM file, and no other, where
// it uses the system's roots.
func (r *Relay) TrustRoots(file string) { r.roots = file }

// Follow adds what the relay writes to a log file, which need not be there
// yet, to its Log.
func (r *Relay) Follow(t testing.TB, path string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		var file *os.File
		for {
			// The last look comes after the end, for the relay's last words.
			last := ctx.Err() != nil
			if file == nil {
				file, _ = os.Open(path)
			}
			if file != nil {
				io.Copy(r.log, file)
			}
			if last {
				break
			}
			time.Sleep(pollInterval)
		}
		if file != nil {
			file.Close()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// Secret writes a file into the relay's folder that only the relay may read,
// and returns its path. The test fails if the content is in the relay's log.
func (r *Relay) Secret(t testing.TB, name, content string) string {
	t.Helper()
	r.secrets = append(r.secrets, content)
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
	r.Process = StartLogging(t, "relay", r.Command("run", "--config", path, "--adapter", "caddyfile"), r.log)
	r.waitServing(t)
	t.Cleanup(func() {
		for _, secret := range r.secrets {
			if strings.Contains(r.Log.String(), secret) {
				t.Error("the relay's log has a secret")
			}
		}
		if race := dataRace(r.Log.String()); race != "" {
			t.Errorf("the race detector found in the relay:\n%s", race)
		}
		if panicked := panicPattern.FindString(r.Log.String()); panicked != "" {
			t.Errorf("the relay panicked: %s", panicked)
		}
	})
}

// waitServing waits until the configuration is in force. Where it logs to is
// its own affair, so the admin endpoint is asked: it answers when the
// configuration is loaded.
func (r *Relay) waitServing(t testing.TB) {
	t.Helper()
	Eventually(t, 30*time.Second, func() error {
		select {
		case <-r.Exited():
			t.Fatalf("the relay ended (%v):\n%s", r.Err(), r.Log.Tail(20))
		default:
		}
		config, err := r.get("/config/")
		if err == nil && strings.TrimSpace(config) == "null" {
			err = fmt.Errorf("the relay has no configuration")
		}
		return err
	})
}

// panicPattern finds a panic, whether it ended the process or net/http caught
// it.
var panicPattern = regexp.MustCompile(`(?m)^panic: .*|http: panic serving.*|^fatal error: .*`)

// knownRaces are of the software that the relay is built with, and are named
// in the race detector's report by these functions.
var knownRaces = []string{
	// Caddy v2.11.9: the HTTP/2 client closes a request's body while it still
	// reads from it, which net/http allows and this wrapper does not expect.
	"caddyhttp/reverseproxy.(*bodyNopCloserIfNotRead)",
	// Caddy v2.11.9: an event's origin is copied to ask for its module's ID,
	// while the tls app that emits it is still in Start.
	"caddytls.(*TLS).CaddyModule()",
}

// dataRace is the first report of the race detector in a log that is not
// known, or nothing.
func dataRace(log string) string {
	for _, report := range strings.Split(log, "WARNING: DATA RACE")[1:] {
		report, _, _ = strings.Cut(report, "==================")
		known := func(function string) bool { return strings.Contains(report, function) }
		if !slices.ContainsFunc(knownRaces, known) {
			return report
		}
	}
	return ""
}

// Command prepares a command of the relay's binary, such as `validate`, run
// as the relay's user in its namespace.
func (r *Relay) Command(args ...string) *exec.Cmd {
	line := append(slices.Clone(r.around), "setpriv",
		"--reuid", strconv.Itoa(RelayUID), "--regid", strconv.Itoa(RelayUID), "--clear-groups",
		"--no-new-privs",
		"--bounding-set", r.caps,
		"--inh-caps", r.caps,
		"--ambient-caps", r.caps,
		r.binary,
	)
	line = append(line, args...)
	cmd := r.namespace.Command(line[0], line[1:]...)
	cmd.Dir = r.Folder
	cmd.Env = append(cmd.Environ(),
		"HOME="+r.Folder,
		"XDG_DATA_HOME="+filepath.Join(r.Folder, "data"),
		"XDG_CONFIG_HOME="+filepath.Join(r.Folder, "config"),
		// The race detector would sleep a second at exit.
		"GORACE=atexit_sleep_ms=0",
	)
	if r.roots != "" {
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+r.roots, "SSL_CERT_DIR=/nonexistent")
	}
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

// Load gives the running relay another Caddyfile by its admin endpoint. The
// error is what the relay says against it.
func (r *Relay) Load(t testing.TB, caddyfile string) error {
	t.Helper()
	response, err := r.adminClient(time.Minute).Post("http://localhost:2019/load", "text/caddyfile", strings.NewReader(caddyfile))
	if err != nil {
		t.Fatalf("asking the relay's admin endpoint: %v", err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, content)
	}
	return err
}

// Admin asks the relay's admin endpoint, at its default address, and returns
// the body.
func (r *Relay) Admin(t testing.TB, path string) string {
	t.Helper()
	body, err := r.get(path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// adminClient reaches the relay's admin endpoint.
func (r *Relay) adminClient(timeout time.Duration) *http.Client {
	return &http.Client{
		Transport: &http.Transport{DialContext: r.namespace.Dial, DisableKeepAlives: true},
		Timeout:   timeout,
	}
}

func (r *Relay) get(path string) (body string, err error) {
	response, err := r.adminClient(20 * time.Second).Get("http://localhost:2019" + path)
	if err != nil {
		return "", fmt.Errorf("asking the relay's admin endpoint: %w", err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, content)
	}
	if err != nil {
		return "", fmt.Errorf("asking the relay's admin endpoint for %s: %w", path, err)
	}
	return string(content), nil
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
