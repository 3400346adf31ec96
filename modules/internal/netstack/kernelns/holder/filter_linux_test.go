package holder

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExplainUnconfined has errors of filterSystemCalls go through a server's
// first words.
func TestExplainUnconfined(t *testing.T) {
	tests := []struct {
		name string
		in   error
		want string
	}{
		{"architecture", fmt.Errorf("%w: %w", errUnknownArchitecture, errors.New("unsupported arch")), "but not of " + runtime.GOARCH},
		{"kernel without seccomp", fmt.Errorf("loading: %w", unix.ENOSYS), "CONFIG_SECCOMP_FILTER"},
		{"kernel with the strict mode alone", fmt.Errorf("loading: %w", unix.EINVAL), "CONFIG_SECCOMP_FILTER"},
		{"forbidden", fmt.Errorf("loading: %w", unix.EPERM), "forbids seccomp(2)"},
		{"no memory", fmt.Errorf("loading: %w", unix.ENOMEM), "cannot allocate memory"},
		{"not the kernel", errors.New("too long"), syscall.EIO.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var hello Reply
			if err := hello.unmarshal(Reply{Errno: errnoOf(tt.in)}.appendTo(nil)); err != nil {
				t.Fatal(err)
			}
			if got := ExplainUnconfined(hello.Errno).Error(); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q in it", got, tt.want)
			}
		})
	}
}
