package wgtransport

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setSocketUserTimeout sets the user timeout (RFC 5482) of a kernel socket.
func setSocketUserTimeout(conn syscall.Conn, timeout time.Duration) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	}); err != nil {
		return err
	}
	return failure
}
