package testnet

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"
)

// TestCPU makes sure that what a program leaves to children is on its account,
// as Apache's and OpenSSH's work is, and what others do is not.
func TestCPU(t *testing.T) {
	idle := Start(t, "idle", exec.Command("sleep", "60"))
	running := Start(t, "with a child", exec.Command("sh", "-c", "(while :; do :; done) >/dev/null 2>&1 & wait"))
	Eventually(t, 10*time.Second, func() error {
		if spent := running.CPU(t); spent < 100*time.Millisecond {
			return fmt.Errorf("a child that is always busy has spent %v", spent)
		}
		return nil
	})
	if spent := idle.CPU(t); spent >= 100*time.Millisecond {
		t.Errorf("a program that sleeps has spent %v", spent)
	}

	ended := Start(t, "with a child that has ended", exec.Command("sh", "-c",
		"(n=0; while [ $n -lt 300000 ]; do n=$((n+1)); done); echo ended; exec sleep 60"))
	ended.WaitLog(t, 0, "ended", 30*time.Second)
	if ended.CPU(t) == 0 {
		t.Error("a child that has ended has spent nothing")
	}
}

// TestLogShown makes sure that a log of many processes is not shown once for each of
// them, but for whoever has had something to say since.
func TestLogShown(t *testing.T) {
	shown := &listener{TB: t}
	var log Log
	for _, said := range []string{"first\n", "", "second\n", ""} {
		fmt.Fprint(&log, said)
		log.show(shown, "a program")
	}
	want := []string{"the end of a program's log:\nfirst", "the end of a program's log:\nfirst\nsecond"}
	if !slices.Equal(shown.heard, want) {
		t.Errorf("got %q, want %q", shown.heard, want)
	}
}

// listener keeps what a test logs.
type listener struct {
	testing.TB
	heard []string
}

func (l *listener) Logf(format string, args ...any) {
	l.heard = append(l.heard, fmt.Sprintf(format, args...))
}

// TestResident makes sure that a child's memory counts, but not twice.
func TestResident(t *testing.T) {
	const (
		hold = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); "
		// Nobody waits for a child that keeps the log open.
		ready = "echo ready; exec >/dev/null 2>&1; "
	)
	withChildren := func(script string, children int) *Process {
		p := Start(t, "sh", exec.Command("sh", "-c", script+"\nwait"))
		p.WaitLog(t, 0, "ready", 30*time.Second)
		Eventually(t, 5*time.Second, func() error {
			group, err := p.group()
			if err == nil && len(group) != 1+children {
				err = fmt.Errorf("there are %d processes, not %d", len(group), 1+children)
			}
			return err
		})
		return p
	}
	resident := func(p *Process) int64 {
		bytes, err := p.Resident()
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}

	itself := resident(withChildren(hold+ready+"sleep 60 &", 1))
	if itself < 20e6 {
		t.Fatalf("a program that holds 20 MB has %d bytes", itself)
	}
	if child := resident(withChildren("("+hold+ready+"sleep 60 & wait) & exec >/dev/null 2>&1", 2)); child < 20e6 {
		t.Errorf("a child that holds 20 MB has %d bytes", child)
	}
	// The children have what their parent had when they began.
	if shared := resident(withChildren(hold+ready+"(sleep 60; :) & (sleep 60; :) &", 4)); shared > itself*3/2 {
		t.Errorf("a program that holds 20 MB has %d bytes with children that share them, and %d alone", shared, itself)
	}
}
