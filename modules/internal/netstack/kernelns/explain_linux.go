package kernelns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// explainStart says what keeps this host from letting us make a namespace, or
// from having our rights in it.
func explainStart(err error) error {
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	reason := ""
	switch {
	case setting("user/max_user_namespaces") == "0":
		reason = "the sysctl user.max_user_namespaces is 0; raise it"
	case setting("user/max_net_namespaces") == "0":
		reason = "the sysctl user.max_net_namespaces is 0; raise it"
	case setting("kernel/unprivileged_userns_clone") == "0":
		reason = "the sysctl kernel.unprivileged_userns_clone is 0; set it to 1"
	case errors.Is(err, syscall.ENOSPC):
		reason = "the limit of namespaces is reached; raise the sysctl user.max_user_namespaces or user.max_net_namespaces"
	case setting("kernel/apparmor_restrict_unprivileged_userns") == "1" && appArmorLabel() == "unconfined":
		reason = "AppArmor lets only programs with a profile use user namespaces; install xcaddy-build/apparmor/homeward"
	case errors.Is(err, syscall.EACCES) && !strings.HasPrefix(appArmorLabel(), "unconfined") && appArmorLabel() != "":
		reason = "the AppArmor profile " + appArmorLabel() + " forbids user namespaces; in a container, --security-opt apparmor=unconfined"
	default:
		reason = "this container, service or security module forbids user namespaces; the table of environments in Homeward's README says how each allows them"
	}
	return fmt.Errorf("%s: %w", reason, err)
}

// explainSocket says why there is no netlink socket.
func explainSocket(err error) error {
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		return fmt.Errorf("the service may not use netlink; allow it (RestrictAddressFamilies=AF_NETLINK): %w", err)
	}
	return explainStart(err)
}

// explainTUN says why there is no TUN.
func explainTUN(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return absentError{fmt.Errorf("there is no /dev/net/tun; load the module (modprobe tun), or show it to the service (no PrivateDevices) or container (--device /dev/net/tun): %w", err)}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("/dev/net/tun may not be opened; allow it to the service (DeviceAllow=/dev/net/tun rw) or container (--device /dev/net/tun): %w", err)
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return absentError{fmt.Errorf("the kernel has no TUN driver loaded; as root: modprobe tun: %w", err)}
	}
	return fmt.Errorf("opening /dev/net/tun: %w", err)
}

// explainAddress says why the namespace does not take an address.
func explainAddress(err error) error {
	if errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("IPv6 is off in new network namespaces, and here nobody may turn it on: /proc/sys is read-only; let Caddy's service write below /proc/sys/net (no ProtectKernelTunables), boot the host without ipv6.disable_ipv6=1, or give the tunnel no IPv6 address: %w", err)
	}
	return err
}

func setting(name string) string {
	content, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

// appArmorLabel is the AppArmor profile that confines this process, or
// "unconfined". One that Docker has put there is not undone by ours.
func appArmorLabel() string {
	for _, file := range []string{"/proc/self/attr/apparmor/current", "/proc/self/attr/current"} {
		if content, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(content))
		}
	}
	return ""
}
