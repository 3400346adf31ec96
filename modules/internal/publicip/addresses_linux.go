package publicip

import (
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// forever is how the kernel says that an address has no end.
const forever = math.MaxUint32

// cacheInfoSize is the size of struct ifa_cacheinfo of linux/if_addr.h: four numbers, of
// which the third is when the address was made, in hundredths of a second since the boot.
const cacheInfoSize = 16

// uptime is the time since the boot as struct ifa_cacheinfo has it, if it has it whole:
// kernels of 32 bits begin anew every few days.
func uptime() (now uint32, ok bool) {
	var name unix.Utsname
	var clock unix.Timespec
	if unix.Uname(&name) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &clock) != nil {
		return 0, false
	}
	machine := unix.ByteSliceToString(name.Machine[:])
	return uint32(clock.Nano() / int64(10*time.Millisecond)), strings.Contains(machine, "64") || machine == "s390x"
}

// addressesOf asks the kernel, which knows more of an address than package net tells.
func addressesOf(device *net.Interface) (addresses []interfaceAddress, err error) {
	table, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	now, aged := uptime()
	messages, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		if messages[i].Header.Type != unix.RTM_NEWADDR || len(messages[i].Data) < unix.SizeofIfAddrmsg {
			continue
		}
		if index := nativeUint32(messages[i].Data[4:]); index != uint32(device.Index) {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&messages[i])
		if err != nil {
			return nil, err
		}
		address := interfaceAddress{permanent: true}
		flags := uint32(messages[i].Data[2])
		for _, attribute := range attributes {
			switch attribute.Attr.Type {
			case unix.IFA_ADDRESS:
				if !address.address.IsValid() {
					address.address, _ = netip.AddrFromSlice(attribute.Value)
				}
			case unix.IFA_LOCAL: // with IFA_ADDRESS the other end's
				address.address, _ = netip.AddrFromSlice(attribute.Value)
			case unix.IFA_FLAGS:
				flags = nativeUint32(attribute.Value)
			case unix.IFA_CACHEINFO:
				address.permanent = nativeUint32(attribute.Value) == forever // the preferred lifetime
				if aged && len(attribute.Value) >= cacheInfoSize {
					address.age = now - nativeUint32(attribute.Value[8:])
				}
			}
		}
		address.passing = flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
		addresses = append(addresses, address)
	}
	return addresses, nil
}
func nativeUint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
