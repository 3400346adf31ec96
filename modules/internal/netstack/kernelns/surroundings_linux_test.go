package kernelns

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// What environments are made of.

func lockForGood() { runtime.LockOSThread() }

func noNewPrivileges() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }

// privateMounts keeps what is mounted from being seen by others.
func privateMounts() error {
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

func readOnly(path string) func() error {
	return func() error {
		if err := privateMounts(); err != nil {
			return err
		}
		if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
}

// bareProc is ProcSubset=pid and ProtectProc=invisible of systemd.
func bareProc() error {
	if err := privateMounts(); err != nil {
		return err
	}
	return os.NewSyscallError("mount", unix.Mount("proc", "/proc", "proc", 0, "subset=pid,hidepid=invisible"))
}

func sysctl(name, value string) func() error {
	return func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }
}

// useUpNamespaces allows one network namespace and makes it.
func useUpNamespaces() error {
	if err := sysctl("user/max_net_namespaces", "1")(); err != nil {
		return err
	}
	return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
}

// devices leaves nothing in /dev/net but a TUN of a type, major number, minor
// number and mode; "" is none.
func devices(tun string) func() error {
	return func() error {
		if err := privateMounts(); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
		if tun == "" {
			return nil
		}
		return makeTUN(tun)
	}
}

// replaceTUN makes another TUN of what devices left.
func replaceTUN(tun string) func() error {
	return func() error {
		if err := os.Remove("/dev/net/tun"); err != nil {
			return err
		}
		return makeTUN(tun)
	}
}

func makeTUN(tun string) error {
	var major, minor, mode uint32
	if _, err := fmt.Sscanf(tun, "c %d %d %o", &major, &minor, &mode); err != nil {
		return err
	}
	if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|mode, int(unix.Mkdev(major, minor))); err != nil {
		return err
	}
	return os.Chmod("/dev/net/tun", os.FileMode(mode))
}

// forbidUserNamespaces is a filter such as Docker's: no new user namespace or,
// with every, no namespace at all. What cannot be looked into is said not to
// exist.
func forbidUserNamespaces(every bool) func() error {
	flags := uint64(unix.CLONE_NEWUSER)
	if every {
		flags |= unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	}
	only := []seccomp.Condition{{Argument: 0, Operation: seccomp.BitsSet, Value: flags}}
	return func() error {
		return seccomp.LoadFilter(seccomp.Filter{Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls: []seccomp.SyscallGroup{{
				Action: seccomp.ActionErrno,
				NamesWithCondtions: []seccomp.NameWithConditions{
					{Name: "clone", Conditions: only},
					{Name: "unshare", Conditions: only},
				},
			}, {
				Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS),
				Names:  []string{"clone3"},
			}},
		}})
	}
}

// dockersRoot is root with the capabilities and under such a filter as Docker
// gives it.
func dockersRoot() error {
	if err := forbidUserNamespaces(true)(); err != nil {
		return err
	}
	const capSysAdmin, capNetAdmin = 21, 12
	for _, capability := range []uintptr{capSysAdmin, capNetAdmin} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// forbidFamily is RestrictAddressFamilies= of systemd. So it is with a family that the
// kernel does not have.
func forbidFamily(family uint64) func() error {
	return func() error { return loadForbidFamily(family) }
}

func loadForbidFamily(family uint64) error {
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{{
			Action: seccomp.ActionErrno | seccomp.Action(unix.EAFNOSUPPORT),
			NamesWithCondtions: []seccomp.NameWithConditions{{
				Name:       "socket",
				Conditions: []seccomp.Condition{{Argument: 0, Operation: seccomp.Equal, Value: family}},
			}},
		}},
	}})
}

// copyOfBinary copies the test's program to where everybody can run it.
func copyOfBinary(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "homeward-environment-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	// One of the tested users deletes the file.
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(folder, "kernelns.test")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// copyWithCapability is what `setcap cap_net_bind_service=+ep` makes. The
// kernel takes such a program for one with secrets: even its own user may not
// look into it (PR_SET_DUMPABLE(2const)).
func copyWithCapability(t *testing.T) string {
	t.Helper()
	path := copyOfBinary(t)
	// struct vfs_cap_data of linux/capability.h: revision 2, effective.
	capability := make([]byte, 20)
	capability[0], capability[3] = 1, 2
	capability[4+capNetBindService/8] = 1 << (capNetBindService % 8)
	if err := unix.Setxattr(path, "security.capability", capability, 0); err != nil {
		t.Fatal(err)
	}
	return path
}

// replaceBinary puts another file in the place of this program's, and then
// none.
func replaceBinary() error {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	other := path + ".new"
	if err := os.WriteFile(other, []byte("#!/bin/false\n"), 0o755); err != nil {
		return err
	}
	if err := os.Rename(other, path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	if path, err = os.Readlink("/proc/self/exe"); err != nil {
		return err
	}
	if !strings.HasSuffix(path, " (deleted)") {
		return fmt.Errorf("%s is still there: %w", path, syscall.EEXIST)
	}
	return nil
}
