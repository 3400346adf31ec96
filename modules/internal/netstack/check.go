package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// MaxMTU leaves room for WireGuard's own header in a UDP datagram.
const MaxMTU = 1<<16 - 1 - 32 - 48

// CheckMTU says what is wrong with an MTU.
func CheckMTU(mtu int) error {
	if mtu < MinMTU || mtu > MaxMTU {
		return fmt.Errorf("MTU %d is not between %d and %d", mtu, MinMTU, MaxMTU)
	}
	return nil
}

// CheckAddresses says what keeps addresses from being a stack's own.
func CheckAddresses(addresses []netip.Prefix) error {
	for i, prefix := range addresses {
		addr := prefix.Addr()
		if !prefix.IsValid() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() ||
			addr.Zone() != "" || addr.Is4In6() {
			return fmt.Errorf("%v cannot be an address of a tunnel", prefix)
		}
		if HasAddress(addresses[:i], addr) {
			return fmt.Errorf("%v is given twice", addr)
		}
	}
	return nil
}

// HasAddress says whether addr is one of addresses, whatever their prefixes.
func HasAddress(addresses []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr() == addr })
}

// HasFamily says whether one of addresses is of addr's family.
func HasFamily(addresses []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == addr.Is4() })
}

// CheckDial refuses a dial by a stack with these addresses that can lead
// nowhere. Addresses that stand for the local host or for many hosts must not
// enter the tunnel.
func CheckDial(addresses []netip.Prefix, local, remote netip.AddrPort) error {
	to := remote.Addr()
	if !to.IsValid() || to.IsUnspecified() || to.IsLoopback() || to.IsMulticast() || to.Zone() != "" {
		return syscall.ENETUNREACH
	}
	if remote.Port() == 0 {
		return syscall.EADDRNOTAVAIL
	}
	from := local.Addr()
	if !from.IsValid() || from.IsUnspecified() {
		if !HasFamily(addresses, to) {
			return ErrNoAddress
		}
		return nil
	}
	if from.Is4() != to.Is4() || from.IsLoopback() || from.IsMulticast() || from.Zone() != "" {
		return syscall.EADDRNOTAVAIL
	}
	return nil
}

// CheckListen refuses a listener of a stack with these addresses on an address
// that is not its own.
func CheckListen(addresses []netip.Prefix, local netip.AddrPort) error {
	addr := local.Addr()
	switch {
	case !addr.IsValid(), addr.IsUnspecified(), HasAddress(addresses, addr):
		return nil
	case !HasFamily(addresses, addr):
		return ErrNoAddress
	}
	return syscall.EADDRNOTAVAIL
}

// IsBound says whether a dial's local address asks for anything.
func IsBound(local netip.AddrPort) bool {
	return local.Port() != 0 || local.Addr().IsValid() && !local.Addr().IsUnspecified()
}
