package testnet

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Log keeps what a process prints and lets a test wait for a part of it. The
// zero value is ready. It may be used by several goroutines at once.
type Log struct {
	mu    sync.Mutex
	text  bytes.Buffer
	shown int // its length when its end was last shown
}

// Write adds to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is everything up to now.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Len is the number of bytes up to now: a mark for Since.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Len()
}

// Since is what came after a mark.
func (l *Log) Since(mark int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text.Bytes()[mark:])
}

// Tail is the last lines, for the message of a failure.
func (l *Log) Tail(lines int) string {
	all := strings.Split(strings.TrimRight(l.String(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// show shows the last lines for a failed test, but not again what one of several
// processes has shown that write to the same log.
func (l *Log) show(t testing.TB, name string) {
	l.mu.Lock()
	news := l.text.Len() != l.shown
	l.shown = l.text.Len()
	l.mu.Unlock()
	if news {
		t.Logf("the end of %s's log:\n%s", name, l.Tail(60))
	}
}

// Process is a program that runs beside a test.
type Process struct {
	// Log has the program's output, both streams.
	Log *Log

	// PID is the program's own, not that of a wrapper.
	PID int

	name   string
	exited chan struct{}
	err    error // valid once exited is closed
	reap   sync.Once
}

// stopPatience is how long a program may take that ends by itself: what a relay has
// to tell others when it ends must not depend on how busy the machine is.
const stopPatience = 30 * time.Second

// Start starts a command. It is ended with the test: SIGTERM, then SIGKILL
// after stopPatience. If the test has failed, the end of its log is shown.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	return StartLogging(t, name, cmd, new(Log))
}

// StartLogging is Start with a log that others may write to as well.
func StartLogging(t testing.TB, name string, cmd *exec.Cmd, log *Log) *Process {
	t.Helper()
	p := &Process{Log: log, name: name, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.Log, p.Log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(unix.SysProcAttr)
	}
	// Its own group, so that its children end with it and a terminal's Ctrl-C
	// reaches only the test, which then cleans up.
	cmd.SysProcAttr.Setpgid = true
	// Wait must not hang on a grandchild that has inherited the output.
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	p.PID = cmd.Process.Pid
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			p.Log.show(t, name)
		}
	})
	return p
}

// Stop ends the process with SIGTERM, with SIGKILL if that takes more than
// stopPatience, and returns when it is gone. It may be called again.
func (p *Process) Stop() {
	p.Signal(unix.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopPatience):
	}
	p.Kill()
}

// Kill ends the process and its children at once.
func (p *Process) Kill() {
	// Only once: later the number may be another process's.
	p.reap.Do(func() { unix.Kill(-p.PID, unix.SIGKILL) })
	<-p.exited
}

// Signal sends a signal if the process still runs.
func (p *Process) Signal(signal unix.Signal) {
	select {
	case <-p.exited:
	default:
		unix.Kill(p.PID, signal)
	}
}

// Exited is closed when the process has ended; Err then says how.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Err is nil if the process has ended by itself with status 0. It waits for
// the end.
func (p *Process) Err() error {
	<-p.exited
	return p.err
}

// WaitLog waits until the log has a match for pattern after the mark (0 for
// all of the log) and returns the match. The test ends if none comes or the
// process ends first.
func (p *Process) WaitLog(t testing.TB, mark int, pattern string, timeout time.Duration) string {
	t.Helper()
	expression := regexp.MustCompile(pattern)
	deadline := time.Now().Add(timeout)
	for {
		ended := false
		select {
		case <-p.exited:
			ended = true
		default:
		}
		text := p.Log.Since(mark)
		if expression.MatchString(text) {
			return expression.FindString(text)
		}
		if ended {
			t.Fatalf("%s ended (%v) before it logged %q", p.name, p.err, pattern)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not log %q within %v", p.name, pattern, timeout)
		}
		time.Sleep(pollInterval)
	}
}

// CPU is the time that the process and its children have spent on a CPU, in
// user and system mode, from /proc/PID/stat (proc_pid_stat(5)). Its resolution
// is 10 ms.
func (p *Process) CPU(t testing.TB) time.Duration {
	t.Helper()
	group, err := p.group()
	if err != nil {
		t.Fatal(err)
	}
	var ticks int64
	for _, stat := range group {
		for _, field := range stat.times {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100
}

// Resident is the memory of the process and its children in bytes. What a
// child shares with others is counted for the process only.
func (p *Process) Resident() (bytes int64, err error) {
	group, err := p.group()
	if err != nil {
		return 0, err
	}
	for _, stat := range group {
		// A child that has just ended has no memory any more.
		usage, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", stat.pid))
		if err != nil {
			continue
		}
		wanted := "Private_"
		if stat.pid == p.PID {
			wanted = "Rss:"
		}
		for line := range strings.Lines(string(usage)) {
			if fields := strings.Fields(line); strings.HasPrefix(line, wanted) && len(fields) == 3 {
				kib, err := strconv.ParseInt(fields[1], 10, 64)
				if err != nil {
					return 0, err
				}
				bytes += kib << 10
			}
		}
	}
	return bytes, nil
}

// stat is what /proc/PID/stat says of one process.
type stat struct {
	pid int

	// times are its own in user and system mode, and those of its children
	// that have ended: those that have not have a stat of their own.
	times []string
}

// group are the process and those of its children that still run. Children
// are in the group that Start makes, unless they have left it.
func (p *Process) group() (group []stat, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended since
		}
		// The second field is the name in parentheses and may contain spaces.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if fields[2] == strconv.Itoa(p.PID) {
			group = append(group, stat{pid, fields[11:15]})
		}
	}
	if !slices.ContainsFunc(group, func(s stat) bool { return s.pid == p.PID }) {
		return nil, fmt.Errorf("%s has ended", p.name)
	}
	return group, nil
}

// RSS is the memory that the process has in bytes.
func (p *Process) RSS(t testing.TB) int64 {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(content), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

// Descriptors lists what the process has open, as in /proc/PID/fd.
func (p *Process) Descriptors(t testing.TB) []string {
	t.Helper()
	folder := fmt.Sprintf("/proc/%d/fd", p.PID)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(folder, entry.Name())); err == nil {
			open = append(open, target)
		}
	}
	return open
}

// pollInterval is how often a condition is looked at that cannot be waited
// for otherwise.
const pollInterval = 20 * time.Millisecond

// Eventually waits until condition returns nil. The test ends with its last
// error if that takes longer than timeout.
func Eventually(t testing.TB, timeout time.Duration, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v still: %v", timeout, err)
		}
		time.Sleep(pollInterval)
	}
}
