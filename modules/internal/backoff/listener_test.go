package backoff

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"

	"go.uber.org/zap"
)

// troubled is a listener whose Accept has errors first.
type troubled struct {
	net.Listener
	errs []error
}

func (l *troubled) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: err}
	}
	return l.Listener.Accept()
}

// errOther is what some listeners say when they have been closed.
var errOther = errors.New("closed")

func listen(t *testing.T, errs ...error) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wrapped := Listen(&troubled{l, errs}, zap.NewNop())
	t.Cleanup(func() { wrapped.Close() })
	return wrapped
}

func errno(number syscall.Errno) error { return os.NewSyscallError("accept4", number) }

func TestAccept(t *testing.T) {
	l := listen(t, errno(syscall.EMFILE), errno(syscall.ENFILE), errno(syscall.ENOMEM), errno(syscall.ENOBUFS), errno(syscall.ECONNABORTED))
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestAcceptTimeout(t *testing.T) {
	var netErr net.Error
	if _, err := listen(t, os.ErrDeadlineExceeded).Accept(); !errors.As(err, &netErr) || !netErr.Timeout() {
		t.Errorf("got %v, want the timeout", err)
	}
}

func TestAcceptClosed(t *testing.T) {
	l := listen(t, errOther)
	l.Close()
	for _, want := range []error{errOther, net.ErrClosed} {
		if _, err := l.Accept(); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

// One that waits after an error can be closed.
func TestAcceptClosedInPause(t *testing.T) {
	endless := make([]error, 1000)
	for i := range endless {
		endless[i] = errno(syscall.EMFILE)
	}
	l := listen(t, endless...)
	ended := make(chan error)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	l.Close()
	if err := <-ended; err == nil {
		t.Error("a closed listener accepts")
	}
}
