package testnet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Binaries are built by go at most once in a test process, and lie in a
// folder that the unprivileged relay can read. An environment variable names
// one that is built already.
var (
	// CaddyEnv names the relay binary, built with -race.
	CaddyEnv = "HOMEWARD_CADDY"
	// FastCaddyEnv names the relay binary, built without -race: for figures.
	FastCaddyEnv = "HOMEWARD_CADDY_FAST"
	// WireGuardGoEnv names wireguard-go, which homes run.
	WireGuardGoEnv = "HOMEWARD_WIREGUARD_GO"
)

var binaries struct {
	sync.Mutex
	folder string
	built  map[string]string
}

// Caddy is the path of the relay binary, built with the race detector.
func Caddy(t testing.TB) string {
	t.Helper()
	return Build(t, CaddyEnv, "caddy", "./xcaddy-build", "-race")
}

// FastCaddy is the path of the relay binary, built as users have it.
func FastCaddy(t testing.TB) string {
	t.Helper()
	return Build(t, FastCaddyEnv, "caddy-fast", "./xcaddy-build")
}

// WireGuardGo is the path of wireguard-go, of the version that go.mod pins.
func WireGuardGo(t testing.TB) string {
	t.Helper()
	return Build(t, WireGuardGoEnv, "wireguard-go", "golang.zx2c4.com/wireguard")
}

// Build builds a main package with flags, unless the environment variable
// names a binary of it, and returns the binary's path.
func Build(t testing.TB, env, name, pkg string, flags ...string) string {
	t.Helper()
	if path := os.Getenv(env); path != "" {
		return path
	}
	binaries.Lock()
	defer binaries.Unlock()
	if path, ok := binaries.built[name]; ok {
		return path
	}
	if binaries.folder == "" {
		// Of the whole run, not of a test: sweepOwn removes it.
		folder, err := os.MkdirTemp("", fmt.Sprintf("homeward-%d-", os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		binaries.folder, binaries.built = folder, make(map[string]string)
	}
	path := filepath.Join(binaries.folder, name)
	args := append([]string{"build", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
	binaries.built[name] = path
	return path
}

// Root is the repository's folder.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}
