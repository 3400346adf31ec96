package holder

import (
	"fmt"
	"runtime"
	"slices"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// allowed are the system calls that Go's runtime makes, and those that a
// server needs to receive a request, answer it, and start its fellow.
var allowed = []string{
	// Go's runtime
	"arch_prctl", "brk", "clock_gettime", "clock_nanosleep", "close", "epoll_create1", "epoll_ctl", "epoll_pwait",
	"epoll_wait", "eventfd2", "exit", "exit_group", "fcntl", "fstat", "futex", "getpid", "getppid", "getrandom",
	"getrlimit", "gettid", "gettimeofday", "lseek", "madvise", "membarrier", "mincore", "mmap", "mprotect", "mremap",
	"munmap", "nanosleep", "newfstatat", "pipe2", "ppoll", "poll", "prctl", "prlimit64", "pread64", "read", "readlink",
	"readlinkat", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait",
	"sched_getaffinity", "sched_yield", "set_robust_list", "set_tid_address", "setitimer", "sigaltstack", "statx",
	"sysinfo", "tgkill", "timer_create", "timer_delete", "timer_settime", "uname", "getuid", "geteuid", "getgid",
	"getegid", "access", "faccessat", "stat", "getcwd",
	// what has another name on machines of 32 bits (socketcall on a 386, whose
	// arguments cannot be looked at, stands for all calls of sockets)
	"_llseek", "cacheflush", "clock_gettime64", "clock_nanosleep_time64", "fcntl64", "fstat64", "fstatat64", "futex_time64",
	"getegid32", "geteuid32", "getgid32", "getuid32", "mmap2", "ppoll_time64", "rt_sigtimedwait_time64", "set_tls",
	"set_thread_area", "socketcall", "stat64", "timer_settime64", "ugetrlimit",
	// a server
	"recvmsg", "sendmsg", "write", "wait4", "waitid", "execve", "dup2", "dup3", "chdir",
}

// filterSystemCalls makes every other system call fail with EPERM. What a
// server starts inherits the filter.
func filterSystemCalls() error {
	mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	if err == nil && mode == 2 && inherited() {
		return nil
	}
	info, err := arch.GetInfo("")
	if err != nil {
		return fmt.Errorf("%w: %w", errUnknownArchitecture, err)
	}
	known := slices.DeleteFunc(slices.Clone(allowed), func(name string) bool {
		_, ok := info.SyscallNames[name]
		return !ok
	})
	only := func(name string, conditions ...seccomp.Condition) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: conditions}
	}
	equal := func(argument uint32, value uint64) seccomp.Condition {
		return seccomp.Condition{Argument: argument, Operation: seccomp.Equal, Value: value}
	}
	const writing = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC
	const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	filter := seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno,
			Syscalls: []seccomp.SyscallGroup{{
				Action: seccomp.ActionAllow,
				Names:  known,
				NamesWithCondtions: []seccomp.NameWithConditions{
					only("socket", equal(0, unix.AF_INET)),
					only("socket", equal(0, unix.AF_INET6)),
					only("socketpair", equal(0, unix.AF_UNIX)),
					only("openat", seccomp.Condition{Argument: 2, Operation: seccomp.BitsNotSet, Value: writing}),
					only("clone", seccomp.Condition{Argument: 0, Operation: seccomp.BitsNotSet, Value: namespaces}),
				},
			}, {
				// Its flags cannot be looked at. Who is told that there is no
				// such call uses clone.
				Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS),
				Names:  []string{"clone3"},
			}},
		},
	}
	if err := seccomp.LoadFilter(filter); err != nil {
		return fmt.Errorf("loading the system-call filter: %w", err)
	}
	return nil
}

// errUnknownArchitecture is what a server says if the library that makes its
// filter does not know the system calls of the architecture.
const errUnknownArchitecture = unix.EOPNOTSUPP

// ExplainUnconfined says why a server runs under no system-call filter, of the
// Errno that comes with its first words.
func ExplainUnconfined(errno syscall.Errno) error {
	switch errno {
	case errUnknownArchitecture:
		return fmt.Errorf("the library that makes the filter knows the system calls of amd64, arm64, arm and 386, but not of %s: %w", runtime.GOARCH, errno)
	case unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("the kernel has no system-call filters; one with CONFIG_SECCOMP_FILTER has: %w", errno)
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("this container, service or security module forbids seccomp(2); allow it: %w", errno)
	}
	return fmt.Errorf("loading the filter: %w", errno)
}

// inherited says whether the filter that is in force is ours: it refuses what
// every other lets through.
func inherited() bool {
	_, _, errno := unix.RawSyscall(unix.SYS_GETPGID, 0, 0, 0)
	return errno == unix.EPERM
}
