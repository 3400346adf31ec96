package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// unit is homeward.service, which says what is forbidden.
func unit() (string, error) {
	text, err := os.ReadFile(filepath.Join(testnet.Root(), "xcaddy-build/homeward.service"))
	return string(text), err
}

// setting is a setting of the unit's, or "".
func setting(unit, name string) string {
	if found := regexp.MustCompile(`(?m)^` + name + `=(.*)$`).FindStringSubmatch(unit); found != nil {
		return found[1]
	}
	return ""
}

// unitMounts are the mounts of the unit for the folder that a relay works in, as
// a shell script.
func unitMounts(unit string) string {
	const readOnly = "mount --bind %[1]s %[1]s; mount -o remount,bind,ro %[1]s; "
	script := `mount --bind "$PWD" "$PWD"; cd "$PWD"; `
	if setting(unit, "ProtectProc") == "invisible" {
		script += "mount -t proc -o hidepid=invisible proc /proc; "
	}
	if setting(unit, "ProtectKernelTunables") == "yes" {
		script += fmt.Sprintf(readOnly, "/proc/sys") + fmt.Sprintf(readOnly, "/sys")
	}
	for _, path := range strings.Fields(setting(unit, "ReadOnlyPaths")) {
		script += fmt.Sprintf(readOnly, path)
	}
	if setting(unit, "DevicePolicy") == "closed" {
		script += "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mkdir /dev/net; "
		if setting(unit, "DeviceAllow") == "/dev/net/tun rw" {
			script += "mknod -m 666 /dev/net/tun c 10 200; "
		}
	}
	if setting(unit, "ProtectSystem") == "strict" {
		script += "mount -o remount,bind,ro /"
	}
	return script
}

var (
	namespaceFlags = map[string]uint64{
		"cgroup": unix.CLONE_NEWCGROUP, "ipc": unix.CLONE_NEWIPC, "net": unix.CLONE_NEWNET, "mnt": unix.CLONE_NEWNS,
		"pid": unix.CLONE_NEWPID, "user": unix.CLONE_NEWUSER, "uts": unix.CLONE_NEWUTS,
	}
	addressFamilies = map[string]uint64{
		"AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK, "AF_UNIX": unix.AF_UNIX,
	}
)

// confineAsUnit forbids the system calls that systemd forbids to the unit. What
// else the unit takes, the relay runs without as ever.
func confineAsUnit() error {
	unit, err := unit()
	if err != nil {
		return err
	}
	// To each condition its own filter: go-seccomp-bpf goes wrong after one
	// that does not hold.
	refuse := func(errno unix.Errno, name string, conditions ...seccomp.Condition) seccomp.Policy {
		return seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{{
			Action:             seccomp.ActionErrno | seccomp.Action(errno),
			NamesWithCondtions: []seccomp.NameWithConditions{{Name: name, Conditions: conditions}},
		}}}
	}
	has := func(argument uint32, bits uint64) seccomp.Condition {
		return seccomp.Condition{Argument: argument, Operation: seccomp.BitsSet, Value: bits}
	}
	var policies []seccomp.Policy

	var forbidden uint64
	for name, flag := range namespaceFlags {
		if !slices.Contains(strings.Fields(setting(unit, "RestrictNamespaces")), name) {
			forbidden |= flag
		}
	}
	policies = append(policies,
		refuse(unix.EPERM, "clone", has(0, forbidden)),
		refuse(unix.EPERM, "unshare", has(0, forbidden)),
		refuse(unix.EPERM, "setns", has(1, forbidden)))

	var families []seccomp.Condition
	for _, name := range strings.Fields(setting(unit, "RestrictAddressFamilies")) {
		family, ok := addressFamilies[name]
		if !ok {
			return fmt.Errorf("the test does not know %s", name)
		}
		families = append(families, seccomp.Condition{Argument: 0, Operation: seccomp.NotEqual, Value: family})
	}
	policies = append(policies, refuse(unix.EAFNOSUPPORT, "socket", families...))

	if setting(unit, "MemoryDenyWriteExecute") == "yes" {
		policies = append(policies,
			refuse(unix.EPERM, "mmap", has(2, unix.PROT_WRITE), has(2, unix.PROT_EXEC)),
			refuse(unix.EPERM, "mprotect", has(2, unix.PROT_EXEC)))
	}

	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	calls, err := systemCalls(strings.Fields(setting(unit, "SystemCallFilter")))
	if err != nil {
		return err
	}
	policies = append(policies, seccomp.Policy{
		DefaultAction: seccomp.ActionErrno,
		Syscalls: []seccomp.SyscallGroup{{
			Action: seccomp.ActionAllow,
			Names: slices.DeleteFunc(calls, func(name string) bool {
				_, ok := info.SyscallNames[name]
				return !ok || name == "clone3"
			}),
		}, {
			Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS),
			Names:  []string{"clone3"},
		}},
	})
	for _, policy := range policies {
		if err := seccomp.LoadFilter(seccomp.Filter{Flag: seccomp.FilterFlagTSync, Policy: policy}); err != nil {
			return err
		}
	}
	return nil
}

// systemCalls is what systemd means by names, some of which are of sets.
func systemCalls(names []string) ([]string, error) {
	var calls []string
	for _, name := range names {
		if !strings.HasPrefix(name, "@") {
			calls = append(calls, name)
			continue
		}
		text, err := exec.Command("systemd-analyze", "syscall-filter", "--no-pager", name).Output()
		if err != nil {
			return nil, fmt.Errorf("asking systemd for %s: %w", name, err)
		}
		var members []string
		for _, line := range strings.Split(string(text), "\n")[1:] {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				members = append(members, line)
			}
		}
		more, err := systemCalls(members)
		if err != nil {
			return nil, err
		}
		calls = append(calls, more...)
	}
	slices.Sort(calls)
	return slices.Compact(calls), nil
}

// TestServiceUnit runs a relay under what homeward.service forbids, made by
// hand since there need be no systemd: the tunnel has the kernel's stack, and
// that has made its settings.
func TestServiceUnit(t *testing.T) {
	testnet.Need(t, "systemd-analyze")
	text, err := unit()
	if err != nil {
		t.Fatal(err)
	}
	itself, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	services.Echo(t, w.Home, ":7000", "")
	binary := filepath.Join(testnet.Folder(t), "caddy")
	testnet.Run(t, "cp", testnet.Caddy(t), binary)
	w.relay.UseBinary(binary)
	w.relay.Surround(append(after(unitMounts(text)), "env", confineEnv+"=service unit", itself)...)
	w.start(t, w.ports(t))
	w.mustEcho(t)
	w.relay.WaitLog(t, 0, `tunnel is up.*"stack":\s*"kernel"`, 10*time.Second)

	// Or all this would have shown nothing.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.relay.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000400"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", w.relay.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/sys"} {
		if !regexp.MustCompile(`(?m)^\S+ ` + path + ` \S+ ro,`).Match(mounts) {
			t.Errorf("%s is writable:\n%s", path, mounts)
		}
	}

	pids := holdersOf(t, binary)
	if len(pids) != 2 {
		t.Fatalf("holders are %v, want two", pids)
	}
	for name, want := range map[string]string{
		"ipv4/ip_local_port_range": "16384 65535",
		"ipv4/tcp_tw_reuse":        "1",
	} {
		got := testnet.Run(t, "nsenter", "--net=/proc/"+fmt.Sprint(pids[0])+"/ns/net", "cat", "/proc/sys/net/"+name)
		if got := strings.Join(strings.Fields(got), " "); got != want {
			t.Errorf("%s is %s inside the tunnel, want %s", name, got, want)
		}
	}
}
