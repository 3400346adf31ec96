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
	names := slices.DeleteFunc(slices.Concat(allowed, []string{"socket", "socketpair", "openat", "clone"}), func(name string) bool {
		_, ok := info.SyscallNames[name]
		return !ok
	})
	// Of several filters the strictest decides. The one that forbids to load
	// another is the last.
	for _, policy := range []seccomp.Policy{
		refuse("socket", differs(0, unix.AF_INET), differs(0, unix.AF_INET6)),
		refuse("socketpair", differs(0, unix.AF_UNIX)),
		refuse("openat", has(2, unix.O_WRONLY|unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC)),
		refuse("clone", has(0, unix.CLONE_NEWUSER|unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWCGROUP)),
		{
			DefaultAction: seccomp.ActionErrno,
			Syscalls: []seccomp.SyscallGroup{{
				Action: seccomp.ActionAllow,
				Names:  names,
			}, {
				// Its flags cannot be looked at. Who is told that there is no
				// such call uses clone.
				Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS),
				Names:  []string{"clone3"},
			}},
		},
	} {
		if err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: policy}); err != nil {
			return fmt.Errorf("loading the system-call filter: %w", err)
		}
	}
	return nil
}

// refuse is a policy that refuses a system call if all conditions hold, and
// says nothing of others.
//
// There is one such call to a policy, and nothing else. When a condition does
// not hold, the filter that go-seccomp-bpf v1.6.0 makes compares the argument
// that it has just loaded, and no longer the call's number, with the number of
// the next call. So an argument that is chosen for it would make one call pass
// for another: a socket of any family for a clone, a file that is opened for
// writing for a socketpair.
func refuse(name string, conditions ...seccomp.Condition) seccomp.Policy {
	return seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{{
			Action:             seccomp.ActionErrno,
			NamesWithCondtions: []seccomp.NameWithConditions{{Name: name, Conditions: conditions}},
		}},
	}
}

func differs(argument uint32, value uint64) seccomp.Condition {
	return seccomp.Condition{Argument: argument, Operation: seccomp.NotEqual, Value: value}
}

// has holds if the argument has any of the bits.
func has(argument uint32, bits uint64) seccomp.Condition {
	return seccomp.Condition{Argument: argument, Operation: seccomp.BitsSet, Value: bits}
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
