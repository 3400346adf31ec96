package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// confineEnv makes the test's program one that confines itself, by one of
// confinements, and becomes the program that its arguments name.
const confineEnv = "HOMEWARD_TEST_CONFINE"

// confinements are what is forbidden.
var confinements = map[string]func() error{
	"no user namespaces": forbidUserNamespaces,
	"service unit":       confineAsUnit,
}

func init() {
	how := os.Getenv(confineEnv)
	if how == "" {
		return
	}
	os.Unsetenv(confineEnv)
	fmt.Fprintln(os.Stderr, confine(confinements[how], os.Args[1:]))
	os.Exit(1)
}

func confine(how func() error, command []string) error {
	program, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	if err := how(); err != nil {
		return err
	}
	return unix.Exec(program, command, os.Environ())
}

// forbidUserNamespaces is what Docker's filter does.
func forbidUserNamespaces() error {
	flag := []seccomp.Condition{{Argument: 0, Operation: seccomp.BitsSet, Value: unix.CLONE_NEWUSER}}
	return seccomp.LoadFilter(seccomp.Filter{Flag: seccomp.FilterFlagTSync, Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{{
			Action: seccomp.ActionErrno,
			NamesWithCondtions: []seccomp.NameWithConditions{
				{Name: "clone", Conditions: flag},
				{Name: "unshare", Conditions: flag},
			},
		}, {
			Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS),
			Names:  []string{"clone3"},
		}},
	}})
}

// after runs a shell script, and then the relay.
func after(script string) []string {
	return []string{"sh", "-e", "-c", script + `; exec "$@"`, "sh"}
}

// TestEnvironments runs a relay where the kernel's stack can be had and where
// it cannot: the tunnel works with `stack auto`, and the log says once why.
func TestEnvironments(t *testing.T) {
	itself, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		around []string
		reason string // "" is the kernel's stack
	}{
		{name: "usual"},
		{name: "read-only sysctls", around: after("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys")},
		{name: "bare proc", around: after("mount -t proc -o subset=pid,hidepid=invisible proc /proc")},
		{name: "no TUN", around: after("mount -t tmpfs none /dev/net"), reason: "there is no /dev/net/tun; load the module"},
		{
			name:   "TUN of root's",
			around: after("mount -t tmpfs none /dev/net; mknod -m 600 /dev/net/tun c 10 200"),
			reason: "/dev/net/tun may not be opened; allow it to the service",
		},
		{
			name:   "no user namespaces",
			around: []string{"env", confineEnv + "=no user namespaces", itself},
			reason: "forbids user namespaces",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			services.Echo(t, w.Home, ":7000", "")
			// Every kernel has reno, and no stack by default.
			caddyfile := replace(t, w.ports(t), "listen_port 51820", "listen_port 51820\n\t\tcongestion_control reno")
			w.relay.Surround(tt.around...)
			w.start(t, caddyfile)
			w.mustEcho(t)

			stack, lines := "kernel", 0
			if tt.reason != "" {
				stack, lines = "gvisor", 1
			}
			w.relay.WaitLog(t, 0, `tunnel is up.*"stack":\s*"`+stack+`"`, 10*time.Second)
			var said []string
			for line := range strings.Lines(w.relay.Log.String()) {
				if strings.Contains(line, "cannot be had") || tt.reason != "" && strings.Contains(line, tt.reason) {
					said = append(said, line)
				}
			}
			if len(said) != lines {
				t.Errorf("%d lines say why it is not the kernel's stack, want %d:\n%s", len(said), lines, strings.Join(said, ""))
			}
			for _, line := range said {
				if !strings.Contains(line, tt.reason) || !regexp.MustCompile(`"ignored_congestion_control": ?"reno"`).MatchString(line) {
					t.Errorf("the log says %s", line)
				}
			}
			out, err := w.relay.Run("wireguard", "show")
			if err != nil || strings.Contains(out, "\n  congestion control: reno\n") != (tt.reason == "") ||
				strings.Contains(out, "; congestion_control reno is not used") != (tt.reason != "") {
				t.Errorf("it shows (%v)\n%s", err, out)
			}
			if tt.reason == "" {
				return
			}
			w.relay.Stop()
			path := w.relay.Write(t, replace(t, caddyfile, "listen_port 51820", "listen_port 51820\n\t\tstack kernel"))
			out, err = w.relay.Run("run", "--config", path, "--adapter", "caddyfile")
			if err == nil || !strings.Contains(out, tt.reason) || !strings.Contains(out, "`stack auto` uses gVisor's") {
				t.Errorf("with stack kernel: %v\n%s", err, out)
			}
		})
	}
}

// TestExecutableReplaced puts another file in the place of the running relay's,
// as an upgrade does, and kills its holders one after the other.
func TestExecutableReplaced(t *testing.T) {
	w := newWorld(t)
	services.Echo(t, w.Home, ":7000", "")
	binary := filepath.Join(testnet.Folder(t), "caddy")
	testnet.Run(t, "cp", testnet.Caddy(t), binary)
	w.relay.UseBinary(binary)
	w.start(t, replace(t, w.ports(t), "listen_port 51820", "listen_port 51820\n\t\tstack kernel"))
	w.mustEcho(t)
	if got := holdersOf(t, binary); len(got) != 2 {
		t.Fatalf("holders are %v, want two", got)
	}

	testnet.WriteFile(t, binary+".new", []byte("#!/bin/false\n"), 0o755)
	testnet.Run(t, "mv", binary+".new", binary)
	for range 3 {
		former := holdersOf(t, binary)
		if err := unix.Kill(former[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testnet.Eventually(t, 20*time.Second, func() error {
			if now := holdersOf(t, binary); len(now) != 2 || now[0] == former[0] || now[1] == former[0] {
				return fmt.Errorf("holders are %v, were %v", now, former)
			}
			return nil
		})
		w.mustEcho(t)
	}
}

// mustEcho makes connections to home's echo, more than sockets are kept ready
// for.
func (w *world) mustEcho(t *testing.T) {
	t.Helper()
	for i := range 100 {
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
		if err != nil {
			t.Fatal(err)
		}
		err = echoOnce(conn, fmt.Sprint("connection ", i))
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// holdersOf are the processes that a relay with a binary of its own has beside
// itself.
func holdersOf(t *testing.T, binary string) (pids []int) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		// One that has ended meanwhile is none.
		program, err := os.Readlink(filepath.Join(process, "exe"))
		if err != nil || strings.TrimSuffix(program, " (deleted)") != binary {
			continue
		}
		line, err := os.ReadFile(filepath.Join(process, "cmdline"))
		if err != nil || !strings.HasPrefix(string(line), "homeward-netns-holder\x00serve") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}
