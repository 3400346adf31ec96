package stacktest

import (
	"flag"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// nobodyUID is a user who has no file and no capability.
const nobodyUID = 65534

// asNobody runs the test once more as nobody, in a process of its own, and says
// that it has. Who is not root cannot, and need not.
func asNobody(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		wantNoCapability(t)
		return false
	}
	// The cases are those that were asked for.
	pattern := "^" + t.Name() + "$"
	if _, cases, ok := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); ok {
		pattern += "/" + cases
	}
	args := []string{"-test.run=" + pattern, "-test.timeout=20m"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Dir = "/" // the test's own folder may be root's alone
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobodyUID, Gid: nobodyUID}}
	if err := cmd.Run(); err != nil {
		t.Errorf("as nobody: %v", err)
	}
	return true
}

// wantNoCapability fails the test if its process may do more than others.
func wantNoCapability(t *testing.T) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		name, set, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if (name == "CapPrm" || name == "CapEff" || name == "CapAmb") && strings.Trim(set, "0") != "" {
			t.Errorf("the suite is for who has no capability, and here %s is %s", name, set)
		}
	}
}
