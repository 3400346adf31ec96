//go:build !linux

package wgtransport

import "net"

// socketTraffic returns nil: only on Linux is the stack in a tunnel the kernel's.
func socketTraffic(net.Conn) func() (traffic, bool) { return nil }
