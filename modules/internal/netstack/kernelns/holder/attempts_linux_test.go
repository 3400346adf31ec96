package holder

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// attemptEnv makes the test binary a program that tries system calls: without a
// filter, with a server's, or with what it has inherited.
const (
	attemptEnv = "HOMEWARD_TEST_ATTEMPT"

	attemptFree      = "free"
	attemptFiltered  = "filtered"
	attemptInherited = "inherited"
)

func TestMain(m *testing.M) {
	if how := os.Getenv(attemptEnv); how != "" {
		if err := try(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			syscall.Exit(1)
		}
		syscall.Exit(0)
	}
	os.Exit(m.Run())
}

// attempt is a system call that a server makes or must not make.
type attempt struct {
	name    string
	call    func() syscall.Errno
	allowed bool
}

// attempts are made with arguments for which the kernel has an errno of its own
// or, for root and everybody else, does what changes nothing. So EPERM is the
// filter's.
func attempts() []attempt {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil
	}
	var all []attempt
	add := func(what, name string, args ...uintptr) {
		number, ok := info.SyscallNames[name]
		if !ok {
			return // not on this architecture
		}
		args = append(args, make([]uintptr, 6-len(args))...)
		all = append(all, attempt{name: strings.TrimSpace(name + " " + what), call: func() syscall.Errno {
			_, _, errno := unix.RawSyscall6(uintptr(number), args[0], args[1], args[2], args[3], args[4], args[5])
			return errno
		}})
	}
	const none = ^uintptr(0) // no descriptor, no process, no type
	path := uintptr(unsafe.Pointer(&devNull[0]))

	add("of netlink", "socket", unix.AF_NETLINK, unix.SOCK_RAW)
	add("of packets", "socket", unix.AF_PACKET, none)
	add("of AF_UNIX", "socket", unix.AF_UNIX, unix.SOCK_STREAM)
	add("of AF_VSOCK", "socket", unix.AF_VSOCK, unix.SOCK_STREAM)
	add("of AF_ALG", "socket", unix.AF_ALG, unix.SOCK_SEQPACKET)
	add("of AF_INET", "socketpair", unix.AF_INET, unix.SOCK_STREAM)
	for _, name := range []string{"connect", "bind", "listen", "accept", "accept4", "sendto", "sendmmsg", "setsockopt", "shutdown"} {
		add("", name, none)
	}

	add("for writing", "openat", 0, path, unix.O_WRONLY)
	add("for reading and writing", "openat", 0, path, unix.O_RDWR)
	add("to create", "openat", 0, path, unix.O_CREAT)
	add("to empty", "openat", 0, path, unix.O_TRUNC)
	add("for reading", "open", path)
	add("", "openat2", none)
	for _, name := range []string{"creat", "mkdir", "unlink", "symlink", "link", "rename", "chmod", "memfd_create", "chroot"} {
		add("", name)
	}
	for _, name := range []string{"mkdirat", "unlinkat", "fchmodat", "fchownat", "ftruncate"} {
		add("", name, none)
	}
	add("", "mount")

	for what, flag := range map[string]uintptr{
		"user": unix.CLONE_NEWUSER, "net": unix.CLONE_NEWNET, "mount": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID,
		"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP,
	} {
		// There are no shared signal handlers without shared memory.
		add("into a namespace: "+what, "clone", flag|unix.CLONE_SIGHAND)
	}
	// A process with threads cannot.
	add("a user namespace", "unshare", unix.CLONE_NEWUSER)
	add("", "setns", none)
	add("", "execveat", none, path)

	add("", "ptrace", unix.PTRACE_ATTACH, none)
	add("", "process_vm_readv", none)
	add("", "process_vm_writev", none)
	add("", "kill", uintptr(os.Getpid()), 0)
	add("", "io_uring_setup")
	add("", "getpgid")

	// An argument that is the number of another call does not make it that call.
	for _, other := range []string{"socket", "socketpair", "openat", "clone", "read"} {
		number := info.SyscallNames[other]
		if unsafe.Sizeof(none) == 8 {
			// The kernel looks at the lower half.
			add("of netlink as "+other, "socket", uintptr(uint64(number)<<32|unix.AF_NETLINK), unix.SOCK_RAW)
			add("of AF_INET as "+other, "socketpair", uintptr(uint64(number)<<32|unix.AF_INET), unix.SOCK_STREAM)
		}
		if number&(unix.O_WRONLY|unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC) != 0 {
			for _, fd := range []uintptr{0, unix.AF_UNIX} {
				add(fmt.Sprint("from ", fd, " as ", other), "openat", fd, path, uintptr(number))
			}
		}
	}

	may := func(name string, call func() error) {
		all = append(all, attempt{name: name, allowed: true, call: func() syscall.Errno {
			if err := call(); err != nil {
				return errnoOf(err)
			}
			return 0
		}})
	}
	for _, domain := range []int32{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []int32{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			may(fmt.Sprintf("sockets of family %d and type %d", domain, kind), func() error {
				fds, err := sockets(Request{Op: OpSocket, Domain: domain, Type: kind, Count: 2})
				CloseAll(fds)
				return err
			})
		}
	}
	may("passing a descriptor", passDescriptor)
	may("openat for reading", func() error {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
	return all
}

var devNull = []byte("/dev/null\x00")

func passDescriptor() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer CloseAll(pair[:])
	var message rights
	if err := unix.Sendmsg(pair[0], []byte{1}, message.of([]int{0}), nil, unix.MSG_NOSIGNAL); err != nil {
		return err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, 0)
	if err != nil {
		return err
	}
	fds, err := descriptors(oob[:n])
	if err == nil && len(fds) != 1 {
		err = unix.EBADF
	}
	CloseAll(fds)
	return err
}

// outcome is what came of the attempts.
type outcome struct {
	How     string
	Errnos  map[string]syscall.Errno
	Filters string
}

// try makes the attempts and prints an outcome. With a filter it then runs
// itself again, as a server starts another.
func try(how string) error {
	if how == attemptFiltered {
		if err := filterSystemCalls(); err != nil {
			return err
		}
	}
	got := outcome{How: how, Errnos: map[string]syscall.Errno{}, Filters: filtersOf("self")}
	for _, a := range attempts() {
		got.Errnos[a.name] = a.call()
	}
	line, err := json.Marshal(got)
	if err != nil {
		return err
	}
	if _, err := syscall.Write(1, line); err != nil {
		return err
	}
	if how != attemptFiltered {
		return nil
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"attempt"}, &syscall.ProcAttr{
		Dir: "/", Env: []string{attemptEnv + "=" + attemptInherited}, Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return fmt.Errorf("starting a successor: %w", err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("the successor ended with %v", status)
	}
	return nil
}

// filtersOf is how many filters a process has, by /proc, or "" if the kernel
// does not say.
func filtersOf(pid string) string {
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	_, after, _ := strings.Cut(string(status), "Seccomp_filters:\t")
	count, _, _ := strings.Cut(after, "\n")
	return count
}

// runAttempts runs this program as one that makes the attempts.
func runAttempts(t *testing.T, how string) (outcomes []outcome) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = []string{attemptEnv + "=" + how}
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", how, err, &out, &errs)
	}
	decoder := json.NewDecoder(strings.NewReader(out.String()))
	for decoder.More() {
		var one outcome
		if err := decoder.Decode(&one); err != nil {
			t.Fatal(err)
		}
		outcomes = append(outcomes, one)
	}
	return outcomes
}

// TestFilter tries what a server must not do, and what it does, under its
// filter, in a process that is started under it, and without one.
func TestFilter(t *testing.T) {
	if _, err := arch.GetInfo(""); err != nil {
		t.Skip("left out: ", err)
	}
	free, filtered := runAttempts(t, attemptFree), runAttempts(t, attemptFiltered)
	if len(free) != 1 || len(filtered) != 2 {
		t.Fatalf("%d and %d outcomes, want 1 and 2", len(free), len(filtered))
	}
	ofHost := free[0].Filters != "" && free[0].Filters != "0"
	for _, a := range attempts() {
		without := free[0].Errnos[a.name]
		if !a.allowed && without == unix.EPERM && !ofHost {
			t.Errorf("%s is refused without a filter too, which proves nothing", a.name)
		}
		want := unix.EPERM
		if a.allowed {
			want = without
		}
		for _, got := range filtered {
			if errno, ok := got.Errnos[a.name]; !ok || errno != want {
				t.Errorf("%s, %s: errno is %d (%v), want %d; without a filter it is %d", a.name, got.How, errno, errno, want, without)
			}
		}
	}

	_, setup := setupProcess(t)
	_, fds := ask(t, setup, Request{Op: OpServe})
	_, hello := serveProcess(t, fds[0])
	counts := []string{filtered[0].Filters, filtered[1].Filters, filtersOf(fmt.Sprint(hello.PID))}
	if !hello.Confined || len(slices.Compact(counts)) != 1 {
		t.Errorf("a server is confined: %v; of filters, the test, its successor and a server have %v", hello.Confined, counts)
	}
}
