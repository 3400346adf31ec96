package wgbind

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// A socket that fails to receive is read again, since wireguard-go would not,
// and that it goes on failing is said.
func TestReceiveErrorIsNotTheEnd(t *testing.T) {
	b := New()
	var answers []error
	receive := b.lasting([]conn.ReceiveFunc{func([][]byte, []int, []conn.Endpoint) (int, error) {
		if len(answers) == 0 {
			return 1, nil
		}
		err := answers[0]
		answers = answers[1:]
		return 0, err
	}})[0]

	answers = []error{&net.OpError{Op: "read", Err: syscall.ENOMEM}, &net.OpError{Op: "read", Err: syscall.ENOBUFS}}
	if n, err := receive(nil, nil, nil); n != 1 || err != nil {
		t.Errorf("after passing errors: %d packets and %v", n, err)
	}
	select {
	case err := <-b.Failed():
		t.Errorf("passing errors are said to have ended the socket: %v", err)
	default:
	}

	answers = []error{syscall.ENOTSOCK, net.ErrClosed}
	if _, err := receive(nil, nil, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("of a closed socket: %v", err)
	}
}

func TestDeadSocketIsSaid(t *testing.T) {
	b := New()
	closed := make(chan struct{})
	receive := b.lasting([]conn.ReceiveFunc{func([][]byte, []int, []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		default:
			return 0, syscall.ENETDOWN
		}
	}})[0]
	ended := make(chan error, 1)
	go func() {
		_, err := receive(nil, nil, nil)
		ended <- err
	}()
	select {
	case err := <-b.Failed():
		if !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("the reason is %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("nobody is told")
	}
	close(closed)
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed at last: %v", err)
	}
}
