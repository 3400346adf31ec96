package kernelns_test

import (
	"flag"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns"
	"github.com/homeward-relay/homeward/modules/internal/netstack/stacktest"
)

func newStack(config stacktest.Config) (netstack.Stack, error) {
	return kernelns.New(kernelns.Config{Name: config.Name, MTU: config.MTU, Addresses: config.Addresses})
}

// nobody has no file and no capability.
const nobody = 65534

// TestConformance runs the suite as the user whom it is made for. Where this
// is root, it runs itself again as nobody.
func TestConformance(t *testing.T) {
	if os.Getuid() == 0 {
		runAsNobody(t)
		return
	}
	stacktest.Run(t, newStack)
}

// TestRoot is for one who runs Caddy as root.
func TestRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	stack, err := kernelns.New(kernelns.Config{Name: "wg0", MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
}

func runAsNobody(t *testing.T) {
	t.Helper()
	// The test's own folder may be root's alone.
	args := []string{"-test.run=^TestConformance$", "-test.timeout=20m"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	if run := flag.Lookup("test.run"); run != nil && run.Value.String() != "" {
		args[0] = "-test.run=" + run.Value.String()
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := cmd.Run(); err != nil {
		t.Errorf("as nobody: %v", err)
	}
}

func BenchmarkDial(b *testing.B) { stacktest.BenchmarkDial(b, newStack) }
