package publictcp

import (
	"net"
	"os"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// boundUnsent bounds what waits unsent in a socket.
func boundUnsent(fd uintptr) {
	// Not every kind of socket has it (Multipath TCP only since Linux 6.9), and
	// all work without.
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
}

// roundTrip returns the smoothed round-trip time of a socket, in microseconds.
func roundTrip(fd uintptr) (micros uint32, err error) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, err
	}
	return info.Rtt, nil
}

// setOptions sets both options of a socket.
func setOptions(fd uintptr, algorithm string) error {
	boundUnsent(fd)

	// Asking for what the socket has already is always allowed.
	return unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, algorithm)
}

// present says what conn has and what the host has, as fields of a log line.
func present(conn *net.TCPConn) []zap.Field {
	var fields []zap.Field
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if name, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil {
				fields = append(fields, zap.String("congestion_control", name))
			}
		})
	}
	if names := sysctl("available"); names != "" {
		fields = append(fields, zap.String("available", names))
	}
	return fields
}

// sysctl reads net.ipv4.tcp_KIND_congestion_control, names with blanks between.
// It is empty where it cannot be read.
func sysctl(kind string) string {
	content, err := os.ReadFile("/proc/sys/net/ipv4/tcp_" + kind + "_congestion_control")
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(content)), " ")
}
