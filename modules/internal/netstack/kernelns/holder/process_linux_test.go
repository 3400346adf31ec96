package holder

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnlyEndOfFileEnds sends both roles every signal that asks a process to
// end. They end when their control socket is closed.
func TestOnlyEndOfFileEnds(t *testing.T) {
	cmd, control := setupProcess(t)
	socket := Request{Op: OpSocket, Domain: unix.AF_INET, Type: unix.SOCK_STREAM}
	_, fds := ask(t, control, socket)
	CloseAll(fds)
	bombard(t, cmd.Process.Pid)
	_, fds = ask(t, control, Request{Op: OpServe})
	setup := control
	control, hello := serveProcess(t, fds[0])
	bombard(t, int(hello.PID))
	_, fds = ask(t, control, socket)
	CloseAll(fds)

	for _, c := range []interface{ Close() error }{setup, control} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("setup ended with %v", err)
	}
}

// setupProcess starts a holder in its first role.
func setupProcess(t *testing.T) (*exec.Cmd, *net.UnixConn) {
	t.Helper()
	cmd, control, end, err := Command(true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	err = cmd.Start()
	end.Close()
	if err != nil {
		t.Skip("left out: no user namespaces here: ", err)
	}
	return cmd, control
}

// serveProcess takes over a new server's control socket and returns its first
// words.
func serveProcess(t *testing.T, fd int) (*net.UnixConn, Reply) {
	t.Helper()
	control, err := Control(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	hello, _, err := Receive(control)
	if err != nil {
		t.Fatal(err)
	}
	return control, hello
}

func ask(t *testing.T, control *net.UnixConn, request Request) (Reply, []int) {
	t.Helper()
	if err := Ask(control, request); err != nil {
		t.Fatal(err)
	}
	reply, fds, err := Receive(control)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Errno != 0 {
		t.Fatal(reply.Errno)
	}
	return reply, fds
}

// TestMemoryStaysPut asks a server for so many sockets that it would grow if
// each request left something behind.
func TestMemoryStaysPut(t *testing.T) {
	cmd, setup := setupProcess(t)
	_, fds := ask(t, setup, Request{Op: OpServe})
	control, hello := serveProcess(t, fds[0])
	burst := func(requests int) (kib int) {
		t.Helper()
		for range requests {
			_, fds := ask(t, control, Request{Op: OpSocket, Domain: unix.AF_INET, Type: unix.SOCK_DGRAM, Count: 8})
			CloseAll(fds)
		}
		return anonymous(t, int(hello.PID))
	}
	before := burst(1000) // what is needed once
	after := burst(10_000)
	// 64 bytes a request would be 640 KiB.
	if grown := after - before; grown > 512 {
		t.Errorf("grew by %d KiB, from %d KiB", grown, before)
	}
	control.Close()
	setup.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("setup ended with %v", err)
	}
}

// anonymous is how much memory a process has that is not of a file.
func anonymous(t *testing.T, pid int) (kib int) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "RssAnon:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// bombard sends a process the signals that it is to ignore. Whether it does is
// read from what the kernel knows of it, since a signal may take its time.
func bombard(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "SigIgn:\t")
	word, _, _ := strings.Cut(after, "\n")
	ignored, err := strconv.ParseUint(word, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, signal := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT} {
		if ignored&(1<<(signal-1)) == 0 {
			t.Errorf("process %d does not ignore %v", pid, signal)
		}
		if err := unix.Kill(pid, signal); err != nil {
			t.Error(err)
		}
	}
}

func TestSingleUser(t *testing.T) {
	tests := []struct {
		name, in string
		want     bool
	}{
		{"our own namespace", "         0      65534          1\n", true},
		{"the host", "         0          0 4294967295\n", false},
		{"rootless container", "         0       1000          1\n         1     100000      65536\n", false},
		{"none yet", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := singleUser(tt.in); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
