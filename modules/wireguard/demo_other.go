//go:build !linux

package wireguard

import "syscall"

// demoProcessAttributes are the system's defaults.
func demoProcessAttributes() *syscall.SysProcAttr { return nil }
