package backoff

import (
	"net"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestLoop has an error again and again, and looks at the pauses and the log.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		done := make(chan struct{})
		l := Loop{Message: "trying again", Address: &net.TCPAddr{Port: 80}, Done: done, Logger: func() *zap.Logger { return zap.New(core) }}
		failed := func() time.Duration {
			start := time.Now()
			if !l.Failed(syscall.EMFILE) {
				t.Fatal("it is to end")
			}
			return time.Since(start)
		}
		var pauses []time.Duration
		for range 10 {
			pauses = append(pauses, failed()/time.Millisecond)
		}
		if want := []time.Duration{5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000}; !slices.Equal(pauses, want) {
			t.Errorf("pauses are %v ms, want %v", pauses, want)
		}
		if got := logs.Len(); got != 1 {
			t.Errorf("%d lines for 10 errors", got)
		}
		l.Succeeded()
		if got := failed(); got != firstPause {
			t.Errorf("after a success, the pause is %v", got)
		}
		time.Sleep(errorInterval)
		failed()
		if got := logs.All(); len(got) != 2 || got[1].ContextMap()["suppressed"] != int64(10) {
			t.Errorf("the log is %v", got)
		}
		close(done)
		if l.Failed(syscall.EMFILE) {
			t.Error("it goes on when it is to end")
		}
	})
}
