package kernelns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Where a stack cannot be had, another one is taken for as long as the program runs. So
// what is in the way for a moment only, as on a host that is just starting, must not
// decide. What is there to stay must not delay the start either.
const (
	// attemptMin is the pause after the first attempt to make a stack. Each next is
	// twice as long.
	attemptMin = 250 * time.Millisecond

	// attemptsMax is how long after the first failure another attempt may begin.
	attemptsMax = 10 * time.Second

	// bootMax is how long a host may take to load its drivers. Later, one that is not
	// there is not waited for.
	bootMax = 5 * time.Minute
)

// newStackPatiently is newStack, several times if what is in the way may pass.
func newStackPatiently(config Config) (*Stack, error) {
	logger := config.Logger
	if logger == nil {
		logger = zap.NewNop()
	}
	var failed time.Time
	for attempt, wait := 1, attemptMin; ; attempt, wait = attempt+1, 2*wait {
		s, err := newStack(config)
		if err == nil {
			if attempt > 1 {
				logger.Info("the kernel's TCP/IP stack can be had after all", zap.Int("attempts", attempt))
			}
			return s, nil
		}
		if failed.IsZero() {
			failed = time.Now()
		}
		passes := mayPass(err)
		if passes && time.Since(failed)+wait <= attemptsMax {
			logger.Info("the kernel's TCP/IP stack cannot be made now; trying again", zap.Duration("after", wait), zap.Error(err))
			time.Sleep(wait)
			continue
		}
		switch {
		case passes:
			return nil, fmt.Errorf("tried %d times; what is in the way may pass, restart Caddy to try again: %w", attempt, err)
		case attempt > 1:
			return nil, fmt.Errorf("tried %d times: %w", attempt, err)
		}
		return nil, err
	}
}

// passing are the errors of what may be otherwise in a moment: too little memory, or too
// many processes or open files on this host.
var passing = []error{errLate, os.ErrDeadlineExceeded, syscall.EAGAIN, syscall.ENOMEM, syscall.ENOBUFS, syscall.EBUSY, syscall.ENFILE}

// absentError is that there is no TUN driver.
type absentError struct{ error }

func (e absentError) Unwrap() error { return e.error }

// mayPass says whether what has kept newStack from making a stack may be gone in a
// moment.
func mayPass(err error) bool {
	if _, absent := errors.AsType[absentError](err); absent {
		// A node in a container's or service's own /dev does not come later.
		return sinceBoot() < bootMax && (!errors.Is(err, syscall.ENOENT) || onDevtmpfs("/dev/net/tun"))
	}
	return slices.ContainsFunc(passing, func(passes error) bool { return errors.Is(err, passes) })
}

// sinceBoot is for how long the host is up. Tests have their own.
var sinceBoot = func() time.Duration {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return bootMax
	}
	return time.Duration(up.Nano())
}

// onDevtmpfs says whether path is, or would be, where the kernel itself puts the nodes of
// its drivers.
func onDevtmpfs(path string) bool {
	var stat unix.Stat_t
	for unix.Stat(path, &stat) != nil {
		if path == "/" {
			return false
		}
		path = filepath.Dir(path)
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer mounts.Close()
	return filesystemOf(mounts, stat.Dev) == "devtmpfs"
}

// filesystemOf is the type of the filesystem on a device, as a mountinfo has it
// (proc_pid_mountinfo(5)); "" if that has none.
func filesystemOf(mountinfo io.Reader, device uint64) string {
	number := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	for lines := bufio.NewScanner(mountinfo); lines.Scan(); {
		mount, filesystem, _ := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(mount); len(fields) > 2 && fields[2] == number {
			kind, _, _ := strings.Cut(filesystem, " ")
			return kind
		}
	}
	return ""
}
