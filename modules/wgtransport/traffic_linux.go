package wgtransport

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketTraffic tells of the traffic of a kernel socket.
func socketTraffic(conn net.Conn) func() (now traffic, open bool) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return func() (now traffic, open bool) {
		var info *unix.TCPInfo
		var failure error
		if err := raw.Control(func(fd uintptr) {
			info, failure = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		}); err != nil || failure != nil {
			return traffic{}, false
		}
		return traffic{
			waits: info.Unacked > 0 || info.Notsent_bytes > 0,
			// The first is the only one that never falls. The others fall when
			// something is heard.
			asked: uint64(info.Total_retrans) + uint64(info.Retransmits) + uint64(info.Probes),
			heard: uint64(info.Segs_in),
		}, true
	}
}
