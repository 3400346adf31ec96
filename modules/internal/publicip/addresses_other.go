//go:build !linux

package publicip

import (
	"net"
	"net/netip"
)

// addressesOf takes what package net tells, which has no lifetimes.
func addressesOf(device *net.Interface) (addresses []interfaceAddress, err error) {
	known, err := device.Addrs()
	if err != nil {
		return nil, err
	}
	for _, a := range known {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addresses = append(addresses, interfaceAddress{address: prefix.Addr(), permanent: true})
		}
	}
	return addresses, nil
}
