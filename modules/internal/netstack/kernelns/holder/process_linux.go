package holder

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// name is what the process is called in a list of processes, and how its
	// init function knows itself. It stands where a program's path stands, so
	// that no argument of a user's can be taken for it.
	name = "homeward-netns-holder"

	roleSetup = "setup"
	roleServe = "serve"

	// controlFD is where a holder finds its end of the control socket.
	controlFD = 3

	// garbageMax is how many bytes of garbage a holder may have. Answering a
	// question leaves none, and starting a successor a few KiB.
	garbageMax = 4 << 20
)

func init() {
	if len(os.Args) != 2 || os.Args[0] != name {
		return
	}
	// What a service manager or a terminal sends to every process of a service
	// reaches a holder before the program that still needs it has ended.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	limitMemory()
	switch os.Args[1] {
	case roleSetup:
		setup()
	case roleServe:
		serve()
	}
	// Not os.Exit, at which a program built with -race waits for a second.
	syscall.Exit(0)
}

// limitMemory has garbage collected only when there is much of it. What Go has
// set aside at the start counts in a limit and depends on the program and the
// number of processors: 11 MB in Caddy on two, 16 MB on 64, most of it untouched.
func limitMemory() {
	debug.SetGCPercent(-1)
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	debug.SetMemoryLimit(int64(now.Sys-now.HeapReleased) + garbageMax)
}

// serve hands out sockets until the control socket is closed.
func serve() {
	err := filterSystemCalls()
	hello := Reply{PID: int32(os.Getpid()), Confined: err == nil}
	if err != nil {
		hello.Errno = errnoOf(err)
	}
	if unix.Sendmsg(controlFD, hello.appendTo(nil), nil, nil, unix.MSG_NOSIGNAL) != nil {
		return
	}
	made := make([]int, 0, MaxSockets)
	answer(func(request Request) ([]int, error) {
		switch request.Op {
		case OpSocket:
			if !plain(request) {
				return nil, syscall.EPERM
			}
			return appendSockets(made, request)
		case OpServe:
			return start(roleServe)
		}
		return nil, syscall.ENOSYS
	})
}

// plain says whether a socket needs no capability.
func plain(r Request) bool {
	return (r.Domain == unix.AF_INET || r.Domain == unix.AF_INET6) &&
		(r.Type == unix.SOCK_STREAM || r.Type == unix.SOCK_DGRAM) && r.Protocol == 0
}

// answer answers requests until the control socket is closed. It allocates
// nothing for one, so that a holder stays as small as it is.
func answer(handle func(Request) ([]int, error)) {
	in, out := make([]byte, requestSize+1), make([]byte, 0, replySize)
	var passed rights
	for {
		// Unlike recvmsg's, Go's read needs no room for a sender's address.
		n, err := unix.Read(controlFD, in)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		reply := Reply{PID: int32(os.Getpid())}
		var fds []int
		var request Request
		if request.unmarshal(in[:n]) != nil {
			reply.Errno = syscall.EINVAL
		} else if fds, err = handle(request); err != nil {
			reply.Errno = errnoOf(err)
		}
		reply.Number = request.Number
		if len(fds) > 0 {
			part := reply
			part.part = true
			err := unix.Sendmsg(controlFD, part.appendTo(out), passed.of(fds), nil, unix.MSG_NOSIGNAL)
			CloseAll(fds)
			if err != nil {
				return
			}
		}
		if unix.Sendmsg(controlFD, reply.appendTo(out), nil, nil, unix.MSG_NOSIGNAL) != nil {
			return
		}
	}
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return syscall.EIO
}

// sockets makes blank sockets.
func sockets(r Request) ([]int, error) { return appendSockets(nil, r) }

// appendSockets adds blank sockets to fds, which has none yet.
func appendSockets(fds []int, r Request) ([]int, error) {
	for range min(max(r.Count, 1), MaxSockets) {
		fd, err := unix.Socket(int(r.Domain), int(r.Type)|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(r.Protocol))
		if err != nil {
			if len(fds) > 0 {
				break // as many as there could be had
			}
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// start runs this program once more, in the namespaces and with the rights of
// the calling thread, and returns the other end of its control socket.
func start(role string) ([]int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[1])
	pid, err := syscall.ForkExec("/proc/self/exe", []string{name, role}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []uintptr{0, 1, 2, uintptr(pair[1])},
	})
	if err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	go func() {
		// Or there would be a zombie for as long as this process lives.
		var status syscall.WaitStatus
		for {
			if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
				return
			}
		}
	}()
	return []int{pair[0]}, nil
}
