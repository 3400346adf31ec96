package kernelns

import (
	"errors"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// preferredCongestion is what a stack uses where the kernel has it: it keeps
// its rate at random loss that makes loss-based senders collapse.
const preferredCongestion = "bbr"

// congestionOf returns the congestion control to be used where name is wanted,
// "" for the kernel's default, and tells of what could not be had.
func congestionOf(stock *blanks, name string, logger *zap.Logger) string {
	asked := name
	if asked == "" {
		asked = preferredCongestion
	}
	fd, err := stock.take()
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, asked)
	if err == nil {
		return asked
	}
	used, _ := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	message := "this kernel has not loaded the wanted TCP congestion control; as root: modprobe tcp_" + asked + ", and write tcp_" + asked + " to a file in /etc/modules-load.d"
	if !errors.Is(err, syscall.ENOENT) {
		message = "the wanted TCP congestion control cannot be used"
	}
	logger.Warn(message, zap.String("congestion_control", asked), zap.String("used", used), zap.Error(err))
	return ""
}
