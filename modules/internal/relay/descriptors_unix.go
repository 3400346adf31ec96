//go:build unix

package relay

import "syscall"

// descriptorLimit is how many descriptors this process may have. (Go has raised it
// to what root allows.)
func descriptorLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur) // signed on some systems
}
