package kernelns

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// preferredCongestion is what a stack uses where the kernel has it: it keeps
// its rate at random loss that makes loss-based senders collapse.
const preferredCongestion = "bbr"

// nearby is the round trip below which a connection has no use for BBR: the
// other end is in the same data centre or house, and whatever is lost, the next
// round trip repairs. Its pacing would cost a tenth of the throughput at
// 3 Gbit/s.
var nearby = time.Millisecond

// lossBased are what connections to what is near get, and all where what was
// wanted cannot be had: the first that the kernel has. It always has the last.
var lossBased = []string{"cubic", "reno"}

// useLossBased gives the first of them to a socket and returns its name, or "".
func useLossBased(fd int) string {
	for _, name := range lossBased {
		if unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) == nil {
			return name
		}
	}
	return ""
}

// nearCongestion returns what connections to what is near get in place of a
// congestion control that was not asked for by name, or "".
func nearCongestion(stock *blanks, asked, used string) string {
	if asked != "" || used != preferredCongestion {
		return ""
	}
	fd, err := stock.take(context.Background())
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	return useLossBased(fd)
}

// tune gives a new connection to what is near another congestion control.
func (s *Stack) tune(conn *net.TCPConn) {
	near := *s.near.Load()
	if near == "" {
		return
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		// The round trip is the handshake's.
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.Rtt > 0 && time.Duration(info.Rtt)*time.Microsecond < nearby {
			_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, near)
		}
	})
}

// congestionOf returns the congestion control to be used where name is wanted,
// and tells of what could not be had. It is "", for the kernel's default, only
// if nothing can be found out.
func congestionOf(stock *blanks, name string, logger *zap.Logger) string {
	asked := name
	if asked == "" {
		asked = preferredCongestion
	}
	fd, err := stock.take(context.Background())
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, asked)
	if err == nil {
		return asked
	}
	used := useLossBased(fd)
	message := "this kernel has not loaded the wanted TCP congestion control; as root: modprobe tcp_" + asked + ", and write tcp_" + asked + " to a file in /etc/modules-load.d"
	if !errors.Is(err, syscall.ENOENT) {
		message = "the wanted TCP congestion control cannot be used"
	}
	logger.Warn(message, zap.String("congestion_control", asked), zap.String("used", used), zap.Error(err))
	return used
}
