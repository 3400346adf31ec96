package kernelns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// explainStart says what keeps this host from letting us make a namespace.
func explainStart(err error) error {
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	reason := ""
	switch {
	case setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
		reason = "AppArmor lets only programs with a profile make user namespaces; install the profile from xcaddy-build"
	case setting("user/max_user_namespaces") == "0":
		reason = "the sysctl user.max_user_namespaces is 0"
	case setting("user/max_net_namespaces") == "0":
		reason = "the sysctl user.max_net_namespaces is 0"
	case setting("kernel/unprivileged_userns_clone") == "0":
		reason = "the sysctl kernel.unprivileged_userns_clone is 0"
	case errors.Is(err, syscall.ENOSPC):
		reason = "the limit of namespaces, user.max_user_namespaces or user.max_net_namespaces, is reached"
	default:
		reason = "this container, service or security module forbids user namespaces"
	}
	return fmt.Errorf("%s: %w", reason, err)
}

// explainTUN says why there is no TUN.
func explainTUN(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("there is no /dev/net/tun; load the module (modprobe tun), or give it to the container (--device /dev/net/tun): %w", err)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("/dev/net/tun may not be opened; allow it to the service (DeviceAllow=/dev/net/tun rw) or container (--device /dev/net/tun): %w", err)
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("the kernel has no TUN driver loaded; as root: modprobe tun: %w", err)
	}
	return fmt.Errorf("opening /dev/net/tun: %w", err)
}

func setting(name string) string {
	content, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}
