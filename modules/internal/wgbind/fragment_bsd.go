//go:build darwin || freebsd

package wgbind

import "golang.org/x/sys/unix"

// setDontFragment sets DF, and forbids fragmentation at the source for IPv6
// (RFC 3542, section 11.2).
func setDontFragment(fd uintptr, isIPv6 bool) error {
	if isIPv6 {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_DONTFRAG, 1)
}
