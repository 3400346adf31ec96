package wireguard

import (
	"errors"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestBackOff has an error again and again, and looks at the pauses and the log.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		done := make(chan struct{})
		b := backOff{message: "trying again", address: &net.TCPAddr{Port: 80}, done: done, logger: zap.New(core)}
		failed := func() time.Duration {
			start := time.Now()
			if !b.failed(syscall.EMFILE) {
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
		b.succeeded()
		if got := failed(); got != firstPause {
			t.Errorf("after a success, the pause is %v", got)
		}
		time.Sleep(errorInterval)
		failed()
		if got := logs.All(); len(got) != 2 || got[1].ContextMap()["suppressed"] != int64(10) {
			t.Errorf("the log is %v", got)
		}
		close(done)
		if b.failed(syscall.EMFILE) {
			t.Error("it goes on when it is to end")
		}
	})
}

// troubles are errors that come before anything else does.
type troubles struct{ errs []error }

func (t *troubles) next() error {
	if len(t.errs) == 0 {
		return nil
	}
	err := t.errs[0]
	t.errs = t.errs[1:]
	return err
}

// passing are the errors that a socket recovers from.
func passing() troubles {
	var t troubles
	for _, number := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS} {
		t.errs = append(t.errs, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", number)})
	}
	t.errs = append(t.errs, os.ErrDeadlineExceeded)
	return t
}

type troubledListener struct {
	*net.TCPListener
	troubles
}

func (l *troubledListener) Accept() (net.Conn, error) {
	if err := l.next(); err != nil {
		return nil, err
	}
	return l.TCPListener.Accept()
}

type troubledPacketConn struct {
	*net.UDPConn
	troubles
}

func (c *troubledPacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	if err := c.next(); err != nil {
		return 0, nil, err
	}
	return c.UDPConn.ReadFrom(b)
}

// TestPassingErrors has sockets run out of something: they go on when there is
// some again, and end when they are closed.
func TestPassingErrors(t *testing.T) {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tcp := newSharedListener(&troubledListener{listener, passing()})
	udp := newSharedPacketConn(&troubledPacketConn{conn, passing()})
	for _, tt := range []struct {
		socket sharedSocket
		use    any
	}{
		{tcp, tcp.use(tcp.Destruct, net.KeepAliveConfig{})},
		{udp, udp.use(udp.Destruct)},
	} {
		if err := opened(t, tt.use); err != nil {
			t.Errorf("%T: %v", tt.socket, err)
		}
		if err := tt.use.(interface{ Close() error }).Close(); err != nil {
			t.Errorf("%T: %v", tt.socket, err)
		}
		if !tt.socket.hasStopped() {
			t.Errorf("%T goes on", tt.socket)
		}
	}
}

// TestClosedInPause closes sockets that wait after an error.
func TestClosedInPause(t *testing.T) {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	endless := make([]error, 1000)
	for i := range endless {
		endless[i] = syscall.EMFILE
	}
	socket := newSharedListener(&troubledListener{listener, troubles{endless}})
	if err := socket.Destruct(); err != nil {
		t.Error(err)
	}
	if _, err := socket.use(nil, net.KeepAliveConfig{}).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepting: %v", err)
	}
}
