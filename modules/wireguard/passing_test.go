package wireguard

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
)

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
