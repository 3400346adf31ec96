package kernelns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestHoldersStopped stops both holders for longer than an answer may take.
// Dials fail meanwhile, and nothing else comes of it.
func TestHoldersStopped(t *testing.T) {
	// What is opened once, such as Go's poller, is open after that.
	warm, _ := newTestStack(t)
	warm.Close()
	before := descriptors(t)

	s, logs := newTestStack(t)
	listener, err := s.ListenTCP(netip.MustParseAddrPort("10.77.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	dialed, accepted := loop(t, s)
	place, pids := s.place.Load(), holders(s)
	signal := func(signal syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, signal); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// There may be so many that wait to be used.
	for range blanksKept + 1 {
		var conn net.Conn
		if conn, err = s.DialTCP(ctx, netip.AddrPort{}, listener.Addr().(*net.TCPAddr).AddrPort()); err != nil {
			break
		}
		conn.Close()
	}
	if !errors.Is(err, errLate) {
		t.Fatalf("the last dial ended with %v", err)
	}
	exchange(t, dialed, accepted)

	signal(syscall.SIGCONT)
	for range 2 * blanksKept {
		loop(t, s)
	}
	eventually(t, "the late answers", func() bool { return logs.FilterMessageSnippet("answers again").Len() == 2 })
	exchange(t, dialed, accepted)
	if s.place.Load() != place {
		t.Error("the namespace was given up")
	}
	if now := holders(s); !slices.Equal(now, pids) {
		t.Errorf("holders are %v, were %v", now, pids)
	}
	if got := logs.FilterMessageSnippet("does not answer").Len(); got != 2 {
		t.Errorf("%d lines in the log, want 2", got)
	}
	s.Close()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}
