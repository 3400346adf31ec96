package kernelns

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// loneHolder kills a holder while its partner can start no other, and returns
// the partner and what gives it back that it can.
func loneHolder(t *testing.T, s *Stack, logs *observer.ObservedLogs) (partner int, relieve func()) {
	t.Helper()
	pids := holders(s)
	// No descriptor that is not open yet can be had.
	var before unix.Rlimit
	if err := unix.Prlimit(pids[1], unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pids[1], unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a failure to start a successor", func() bool { return failedStarts(logs) > 0 })
	return pids[1], func() {
		t.Helper()
		if err := unix.Prlimit(pids[1], unix.RLIMIT_NOFILE, &before, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func failedStarts(logs *observer.ObservedLogs) int {
	return logs.FilterMessageSnippet("starting another process").Len()
}

// TestSuccessorLater has a holder that cannot start a successor at first. It
// does when it can, without a dial that asks for it, and so its own end is none
// of the namespace's.
func TestSuccessorLater(t *testing.T) {
	s, logs := newTestStack(t)
	dialed, accepted := loop(t, s)
	place := s.place.Load()
	partner, relieve := loneHolder(t, s, logs)
	eventually(t, "a second try", func() bool { return failedStarts(logs) > 1 })
	if warnings := logs.FilterMessageSnippet("starting another process").FilterLevelExact(zap.WarnLevel).Len(); warnings == failedStarts(logs) {
		t.Errorf("%d warnings, one for each try", warnings)
	}
	relieve()
	eventually(t, "a successor", func() bool { return len(holders(s)) == 2 })
	if err := syscall.Kill(partner, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another successor", func() bool {
		now := holders(s)
		return len(now) == 2 && !slices.Contains(now, partner)
	})
	exchange(t, dialed, accepted)
	loop(t, s)
	if s.place.Load() != place {
		t.Error("the namespace was given up")
	}
}

// TestCloseWithoutSuccessor closes a stack that is about to try again.
func TestCloseWithoutSuccessor(t *testing.T) {
	goroutines := goleak.IgnoreCurrent()
	closing := func() (took time.Duration) {
		s, logs := newTestStack(t)
		partner, _ := loneHolder(t, s, logs)
		// Then it waits for four seconds, longer than Close may take.
		eventually(t, "a third try", func() bool { return failedStarts(logs) >= 3 })
		began := time.Now()
		s.Close()
		took = time.Since(began)
		eventually(t, "the end of holder "+strconv.Itoa(partner), func() bool { return gone(partner) })
		return took
	}
	// A busy machine may be late once, who waits for the next try is late each time.
	took := closing()
	for range 2 {
		if took > 3*retryMin {
			took = closing()
		}
	}
	if took > 3*retryMin {
		t.Errorf("closing took %v", took)
	}
	if err := testnet.FindLeaks(goroutines); err != nil {
		t.Error(err)
	}
}

// TestNoFilter makes stacks where no system-call filter can be loaded: they
// work, and the log says once what is missing.
func TestNoFilter(t *testing.T) {
	for _, tt := range []struct {
		errno syscall.Errno
		want  string
	}{
		{unix.ENOSYS, "CONFIG_SECCOMP_FILTER"},
		{unix.EPERM, "forbids seccomp(2)"},
	} {
		t.Run(unix.ErrnoName(tt.errno), func(t *testing.T) {
			core, logs := observer.New(zap.InfoLevel)
			var s *Stack
			var err error
			var making sync.WaitGroup
			making.Go(func() {
				// What the thread may not do, neither may the holders that it
				// starts. It ends with the goroutine.
				lockForGood()
				err = seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Policy: seccomp.Policy{
					DefaultAction: seccomp.ActionAllow,
					Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionErrno | seccomp.Action(tt.errno), Names: []string{"seccomp"}}},
				}})
				if err == nil {
					s, err = newStack(Config{Name: "wg0", MTU: 1420, Addresses: testAddresses, Logger: zap.New(core)})
				}
			})
			making.Wait()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.place.Load().filtered {
				t.Error("a filter is in force")
			}
			// A successor is not worth another line.
			pids := holders(s)
			if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a successor", func() bool {
				now := holders(s)
				return len(now) == 2 && !slices.Contains(now, pids[0])
			})
			loop(t, s)
			warnings := logs.FilterMessageSnippet("without a system-call filter").All()
			if len(warnings) != 1 {
				t.Fatalf("%d lines in the log, want 1", len(warnings))
			}
			if got := fmt.Sprint(warnings[0].ContextMap()["error"]); !strings.Contains(got, tt.want) {
				t.Errorf("the reason is %q, want %q in it", got, tt.want)
			}
		})
	}
}
