package publicip

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// OfInterface returns the public address of this machine's interface of that name that
// stays, or why there is none.
func OfInterface(name string, is4 bool) (netip.Addr, error) {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("there is no network interface %s", name)
	}
	addresses, err := addressesOf(device)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reading the addresses of %s: %w", name, err)
	}
	return choose(name, is4, addresses)
}

// Lasting returns an address of this machine's, or in place of one that is temporary or
// deprecated the one of the same interface that stays, if there is one.
func Lasting(address netip.Addr) netip.Addr {
	interfaces, _ := net.Interfaces()
	for _, device := range interfaces {
		addresses, _ := addressesOf(&device)
		if !slices.ContainsFunc(addresses, func(a interfaceAddress) bool { return a.address == address && a.passing }) {
			continue
		}
		if stays, err := choose(device.Name, address.Is4(), addresses); err == nil {
			return stays
		}
	}
	return address
}

// interfaceAddress is an address that an interface has.
type interfaceAddress struct {
	address netip.Addr

	// passing addresses are temporary (RFC 8981), deprecated or not usable yet.
	passing bool

	// permanent addresses have no end that is known.
	permanent bool

	// age is since when the interface has the address, in hundredths of a second. It
	// is 0 where that is not known.
	age uint32
}

// network is what changes when a provider gives another prefix: a link's subnet, or with
// IPv4 the address itself.
func (a *interfaceAddress) network() netip.Prefix {
	bits := 32
	if a.address.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a.address, bits).Masked()
}

// choose takes a public address that stays: a permanent one if there is one, and else one
// of the network that came last: a router that has restarted may not know that its former
// prefix is to be taken back (RFC 8978). If it gets the former one again, the one between
// them counts until it is deprecated. Of several it is the least, so that it is the same
// one each time.
func choose(name string, is4 bool, addresses []interfaceAddress) (netip.Addr, error) {
	var usable []interfaceAddress
	why := fmt.Errorf("it has no %s address", map[bool]string{true: "IPv4", false: "IPv6"}[is4])
	for _, a := range addresses {
		address := a.address.Unmap()
		if address.Is4() != is4 {
			continue
		}
		switch err := Check(address); {
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
		return netip.Addr{}, fmt.Errorf("interface %s has no public address that stays: %w", name, why)
	}
	age := make(map[netip.Prefix]uint32)
	for _, a := range usable {
		age[a.network()] = max(age[a.network()], a.age)
	}
	best := slices.MinFunc(usable, func(a, b interfaceAddress) int {
		switch {
		case a.permanent != b.permanent:
			return map[bool]int{true: -1, false: 1}[a.permanent]
		case !a.permanent:
			if order := cmp.Compare(age[a.network()], age[b.network()]); order != 0 {
				return order
			}
		}
		return a.address.Compare(b.address)
	})
	return best.address, nil
}
