//go:build !linux && !darwin && !freebsd

package wgbind

import "errors"

// setDontFragment fails: on Windows, wireguard-go's sockets are not reached,
// and other systems have no option for it that works with both families.
func setDontFragment(uintptr, bool) error { return errors.ErrUnsupported }
