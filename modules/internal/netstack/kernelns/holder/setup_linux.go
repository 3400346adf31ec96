package holder

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nobody is the user that servers run as where there is no user namespace to
// make them harmless.
const nobody = 65534

// Command is the setup process, to be started in a new network namespace, and
// in a new user namespace as well if ownUser is true. The process's end of
// the control socket is to be closed when it has started.
//
// It does not die with a signal to its parent's group: it has a session of its
// own. Its environment is empty, its argument fixed and its streams are
// nowhere, so that nothing of its parent's shows.
func Command(ownUser bool) (cmd *exec.Cmd, control *net.UnixConn, end *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, nil, os.NewSyscallError("socketpair", err)
	}
	end = os.NewFile(uintptr(pair[1]), "holder")
	control, err = Control(pair[0])
	if err != nil {
		end.Close()
		return nil, nil, nil, err
	}
	cmd = exec.Command("/proc/self/exe")
	cmd.Args = []string{name, roleSetup}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{end}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNET}
	if ownUser {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		// Root inside, ourselves outside: the one mapping that needs no
		// privilege.
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return cmd, control, end, nil
}

// Control makes a connection of a control socket's descriptor, which it takes
// over.
func Control(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "holder")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// setup hands out what needs a capability, and starts the servers.
func setup() {
	runtime.LockOSThread()
	tune()
	dropped := false
	answer(func(request Request) (fds []int, err error) {
		switch request.Op {
		case OpSocket:
			return sockets(request)
		case OpTUN:
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, err
			}
			return []int{fd}, nil
		case OpServe:
			// Of this thread, and of what it starts.
			if !dropped {
				if err := dropPrivileges(); err != nil {
					return nil, err
				}
				dropped = true
			}
			return start(roleServe)
		}
		return nil, syscall.ENOSYS
	})
}

// tune sets what makes the namespace better where the host lets it, and what
// nothing depends on: /proc/sys may be read-only.
func tune() {
	for _, setting := range []struct{ name, value string }{
		// A relay makes many connections from one address to one port. Ports
		// come round again when timestamps keep the old connection apart
		// (RFC 6191), and there are almost twice as many. Most ports that
		// programs listen on are below.
		{"ipv4/tcp_tw_reuse", "1"},
		{"ipv4/ip_local_port_range", "16384 65535"},
		// Where new namespaces inherit the host's settings, it may be that of
		// a router, or without IPv6.
		{"ipv6/conf/all/forwarding", "0"},
		{"ipv6/conf/default/forwarding", "0"},
		{"ipv6/conf/all/disable_ipv6", "0"},
		{"ipv6/conf/default/disable_ipv6", "0"},
		{"ipv6/conf/lo/disable_ipv6", "0"},
	} {
		_ = os.WriteFile("/proc/sys/net/"+setting.name, []byte(setting.value), 0)
	}
}

// dropPrivileges takes every capability from the calling thread, for good, and
// from every program that it starts.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	// The kernel does not run a program that cannot have what its file is
	// to give it. With the flag above it gets nothing all the same.
	kept := fileCapabilities()
	for capability := uintptr(0); capability <= 63; capability++ {
		if kept&(1<<capability) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
			break // EINVAL: the kernel has no more; EPERM: dropped before
		}
	}
	// Kernels before 4.3 have no ambient set.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if alone, err := onlyUser(); err == nil && !alone && unix.Geteuid() == 0 {
		// The system calls themselves, since Go's functions would change
		// all threads.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			return errno
		}
		// EINVAL: a container without that user, where root without a
		// capability has to do.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, nobody, nobody, nobody); errno != 0 && errno != unix.EINVAL {
			return errno
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 && errno != unix.EINVAL {
			return errno
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}

// fileCapabilities are the capabilities that this program's file gives who runs
// it (struct vfs_cap_data of linux/capability.h), as after setcap(8).
func fileCapabilities() (set uint64) {
	data := make([]byte, 24)
	n, err := unix.Getxattr("/proc/self/exe", "security.capability", data)
	if err != nil || n < 20 {
		return 0
	}
	return uint64(binary.LittleEndian.Uint32(data[4:])) | uint64(binary.LittleEndian.Uint32(data[12:]))<<32
}

// onlyUser says whether the user namespace has no user but one, so that there
// is none to change to.
func onlyUser() (bool, error) {
	content, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	return singleUser(string(content)), nil
}

// singleUser says whether a uid_map (user_namespaces(7)) is of one user. A
// container of a user's own has root in a line by itself and others after it.
func singleUser(uidMap string) bool {
	var inside, outside, count uint32
	lines := strings.Split(strings.TrimSpace(uidMap), "\n")
	_, err := fmt.Sscan(lines[0], &inside, &outside, &count)
	return err == nil && len(lines) == 1 && count == 1
}
