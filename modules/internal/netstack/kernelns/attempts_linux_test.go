package kernelns

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/holder"
)

func TestMayPass(t *testing.T) {
	former := sinceBoot
	t.Cleanup(func() { sinceBoot = former })
	_, control, end, err := holder.Command(true)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	defer control.Close()
	if err := control.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	_, _, late := holder.Receive(control)
	tests := []struct {
		name string
		err  error
		up   time.Duration
		want bool
	}{
		{"a holder that is late", fmt.Errorf("starting a holder: %w", late), time.Hour, true},
		{"a successor that is late", fmt.Errorf("waiting for its first words: %w", errLate), time.Hour, true},
		{"too many processes", explainStart(&os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: syscall.EAGAIN}), time.Hour, true},
		{"no memory", explainTUN(syscall.ENOMEM), time.Hour, true},
		{"busy", explainTUN(syscall.EBUSY), time.Hour, true},
		{"no driver on a host that starts", explainTUN(syscall.ENODEV), time.Minute, true},
		{"no driver", explainTUN(syscall.ENODEV), time.Hour, false},
		{"no node", explainTUN(syscall.ENOENT), time.Hour, false},
		{"no program", explainStart(&os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: syscall.ENOENT}), time.Minute, false},
		{"not allowed", explainStart(syscall.EPERM), time.Minute, false},
		{"TUN not allowed", explainTUN(syscall.EACCES), time.Minute, false},
		{"no such call", explainStart(syscall.ENOSYS), time.Minute, false},
		{"limit of namespaces", explainStart(syscall.ENOSPC), time.Minute, false},
		{"no netlink", explainSocket(syscall.EAFNOSUPPORT), time.Minute, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sinceBoot = func() time.Duration { return tt.up }
			if got := mayPass(fmt.Errorf("making a network namespace: %w", tt.err)); got != tt.want {
				t.Errorf("it is said to pass: %v, want %v: %v", got, tt.want, tt.err)
			}
		})
	}
}

func TestFilesystemOf(t *testing.T) {
	const mounts = `21 26 0:20 / /proc rw,relatime - proc proc rw
23 26 0:6 / /dev rw,relatime shared:2 master:1 - devtmpfs udev rw,size=12334416k
24 23 0:22 / /dev/net rw,nosuid - tmpfs none rw
`
	for minor, want := range map[uint32]string{6: "devtmpfs", 22: "tmpfs", 2: "", 0: ""} {
		if got := filesystemOf(strings.NewReader(mounts), unix.Mkdev(0, minor)); got != want {
			t.Errorf("device 0:%d has %q, want %q", minor, got, want)
		}
	}
	if onDevtmpfs("/proc/self/none/none") {
		t.Error("/proc is taken for the kernel's /dev")
	}
}
