//go:build !linux

package wgtransport

import (
	"syscall"
	"time"
)

// setSocketUserTimeout does nothing: only on Linux is the stack in a tunnel
// the kernel's.
func setSocketUserTimeout(syscall.Conn, time.Duration) error { return nil }
