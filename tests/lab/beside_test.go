package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// childEnv makes a test process a laboratory that others run beside.
const childEnv = "HOMEWARD_LAB_CHILD"

// TestChild is no test but what TestBesideAndKilled starts: a lab with one
// world in use, until its standard input ends.
func TestChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		return
	}
	w := NewWorld(t, customaryTCP, false)
	direct{}.Start(t, w)
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		// Each line asks whether home can be reached.
		took, err := w.ask(t.Context(), []byte("?"))
		fmt.Printf("answer %v %v\n", took, err)
	}
}

// child is a lab in a process of its own.
type child struct {
	cmd   *exec.Cmd
	ask   func() string
	close func()
}

func startChild(t *testing.T) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestChild$")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	return &child{
		cmd: cmd,
		ask: func() string {
			fmt.Fprintln(in, "?")
			for lines.Scan() {
				if line := lines.Text(); strings.HasPrefix(line, "answer ") {
					return line
				}
			}
			return "no answer"
		},
		close: func() { in.Close() },
	}
}

// namespaces are those of a child's world.
func (c *child) namespaces() []string {
	names, _ := filepath.Glob(fmt.Sprintf("/run/netns/hw%d-*", c.cmd.Process.Pid))
	return names
}

// Two labs run side by side. One is killed: the other does not mind, and what
// the killed one left is gone as soon as the next one starts.
func TestBesideAndKilled(t *testing.T) {
	testnet.Need(t, "ip", "nft", "iperf3")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	killed, beside := startChild(t), startChild(t)
	for _, c := range []*child{killed, beside} {
		context.AfterFunc(ctx, func() { c.cmd.Process.Kill() })
		if answer := c.ask(); !strings.HasSuffix(answer, "<nil>") {
			t.Fatal(answer)
		}
	}
	if err := killed.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed.cmd.Wait()
	if len(killed.namespaces()) == 0 {
		t.Fatal("a killed lab has left nothing that could be cleaned up")
	}
	if answer := beside.ask(); !strings.HasSuffix(answer, "<nil>") {
		t.Errorf("the lab beside a killed one: %s", answer)
	}

	next := startChild(t)
	if answer := next.ask(); !strings.HasSuffix(answer, "<nil>") {
		t.Fatal(answer)
	}
	if names := killed.namespaces(); len(names) > 0 {
		t.Errorf("the killed lab's %s are still there", names)
	}
	if out, _ := exec.Command("pgrep", "-f", fmt.Sprintf("hw%d-", killed.cmd.Process.Pid)).Output(); len(out) > 0 {
		t.Errorf("processes of the killed lab still run: %s", out)
	}
	if answer := beside.ask(); !strings.HasSuffix(answer, "<nil>") {
		t.Errorf("the lab beside, after the cleaning: %s", answer)
	}

	next.close()
	if err := next.cmd.Wait(); err != nil {
		t.Errorf("the next lab: %v", err)
	}
	if names := next.namespaces(); len(names) > 0 {
		t.Errorf("a lab that ended left %s", names)
	}
}
