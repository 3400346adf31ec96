package lingering

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// waiting returns how many bytes the other end has not acknowledged yet, or -1 if
// that cannot be known.
func waiting(socket Socket) (count int) {
	conn, ok := socket.(syscall.Conn)
	if !ok {
		return -1
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1
	}
	if controlErr := raw.Control(func(fd uintptr) { count, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); controlErr != nil || err != nil {
		return -1
	}
	return count
}
