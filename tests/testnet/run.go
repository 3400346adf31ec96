package testnet

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// lockDir has one lock file for each test process that uses namespaces. The
// kernel drops the lock with the process, however that ends.
const lockDir = "/run/homeward-tests"

// namePrefix starts the names of all namespaces that testnet makes. The id of
// the process follows.
const namePrefix = "hw"

// run is what this process owns, made at first use.
var run struct {
	once  sync.Once
	err   error
	lock  *os.File
	count int
	sync.Mutex
}

// Main runs the tests of a package and removes what they made, also on
// SIGINT and SIGTERM. Its result is for os.Exit.
func Main(m *testing.M) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-signals
		sweepOwn()
		os.Exit(130)
	}()
	code := m.Run()
	sweepOwn()
	return code
}

// begin takes this process's lock and removes what dead runs left behind.
func begin() error {
	run.once.Do(func() { run.err = takeLock() })
	return run.err
}

func takeLock() error {
	if err := os.MkdirAll(lockDir, 0o755); err != nil {
		return err
	}
	// One process at a time sweeps and registers, or a lock that is not yet
	// taken would look like a dead one.
	all, err := os.OpenFile(filepath.Join(lockDir, "all"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer all.Close()
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", all.Name(), err)
	}
	sweepDead()

	lock, err := os.OpenFile(lockPath(os.Getpid()), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	run.lock = lock
	return nil
}

func lockPath(pid int) string {
	return filepath.Join(lockDir, strconv.Itoa(pid)+".lock")
}

// sweepDead removes what processes left behind that hold their lock no more.
func sweepDead() {
	locks, _ := filepath.Glob(filepath.Join(lockDir, "*.lock"))
	for _, path := range locks {
		pid, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".lock"))
		if err != nil {
			continue
		}
		lock, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			sweep(pid)
			os.Remove(path)
		}
		lock.Close()
	}
}

func sweepOwn() {
	run.Lock()
	defer run.Unlock()
	sweep(os.Getpid())
	if run.lock != nil {
		os.Remove(run.lock.Name())
	}
}

// sweep removes the namespaces of one test process, with the processes in
// them, and its folders.
func sweep(pid int) {
	names, _ := filepath.Glob(fmt.Sprintf("/run/netns/%s%d-*", namePrefix, pid))
	for _, name := range names {
		removeNamespace(filepath.Base(name))
	}
	sockets, _ := filepath.Glob(controlSocket(fmt.Sprintf("wg%d-*", pid)))
	for _, socket := range sockets {
		os.Remove(socket)
	}
	folders, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("homeward-%d-*", pid)))
	for _, folder := range folders {
		os.RemoveAll(folder)
	}
}

// nextNumber tells the networks of this process apart.
func nextNumber() int {
	run.Lock()
	defer run.Unlock()
	run.count++
	return run.count
}

// Folder makes a folder that every user can enter, which t.TempDir's cannot:
// the relay runs without privilege. It is removed with the test.
func Folder(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("", fmt.Sprintf("homeward-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}

// StrictEnv names the environment variable that makes Need fail where it
// otherwise skips: tests/run.sh sets it when it has installed everything.
const StrictEnv = "HOMEWARD_TESTS_STRICT"

// Need skips the test, and says why, if the process is not root or if one of
// the programs is missing. With StrictEnv set a missing program is a failure.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("left out: needs root for network namespaces")
	}
	for _, program := range programs {
		if _, err := Program(program); err != nil {
			if os.Getenv(StrictEnv) != "" {
				t.Fatalf("needs %s: %v", program, err)
			}
			t.Skipf("left out: needs %s, which is not installed", program)
		}
	}
	if err := begin(); err != nil {
		t.Fatalf("beginning the run: %v", err)
	}
}

// Program finds a program in PATH or in the folders of system programs, which
// a user's PATH often lacks.
func Program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, folder := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}
