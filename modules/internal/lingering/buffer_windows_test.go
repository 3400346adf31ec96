package lingering

import "syscall"

func smallReceiveBuffer(fd uintptr) {
	_ = syscall.SetsockoptInt(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10)
}
