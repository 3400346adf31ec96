package wgbind

import "golang.org/x/sys/unix"

// setDontFragment sets what Linux calls PROBE: DF is set, and only the MTU of
// the interface bounds a datagram (ip(7), IP_MTU_DISCOVER).
func setDontFragment(fd uintptr, isIPv6 bool) error {
	if isIPv6 {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
}
