package ddns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// interfaceOrigin is an interface of this machine.
type interfaceOrigin struct {
	name   string
	family family
}

// interfaceAddress is an address that an interface has.
type interfaceAddress struct {
	address netip.Addr

	// passing addresses are temporary (RFC 8981), deprecated or not usable yet.
	passing bool

	// permanent addresses have no end that is known.
	permanent bool
}

func (o interfaceOrigin) address(context.Context) (netip.Addr, error) {
	device, err := net.InterfaceByName(o.name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("there is no network interface %s", o.name)
	}
	addresses, err := addressesOf(device)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reading the addresses of %s: %w", o.name, err)
	}
	return o.choose(addresses)
}

// choose takes a public address that stays: a permanent one if there is one, and of
// several the least, so that it is the same one each time.
func (o interfaceOrigin) choose(addresses []interfaceAddress) (netip.Addr, error) {
	var usable []interfaceAddress
	why := fmt.Errorf("it has no %s address", map[bool]string{true: "IPv4", false: "IPv6"}[o.family.is4])
	for _, a := range addresses {
		if a.address.Unmap().Is4() != o.family.is4 {
			continue
		}
		address, err := o.family.public(a.address)
		switch {
		case err != nil:
			why = err
		case a.passing:
			why = fmt.Errorf("%s is temporary or deprecated", address)
		default:
			a.address = address
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		return netip.Addr{}, fmt.Errorf("interface %s has no public address that stays: %w", o.name, why)
	}
	best := slices.MinFunc(usable, func(a, b interfaceAddress) int {
		if a.permanent != b.permanent {
			return map[bool]int{true: -1, false: 1}[a.permanent]
		}
		return a.address.Compare(b.address)
	})
	return best.address, nil
}

func (interfaceOrigin) interval() time.Duration { return watchInterval }
