package gvisor

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// SetMTU changes the size of the largest packet. Open connections go on; what
// they send is cut to the new size.
func (s *Stack) SetMTU(mtu int) error {
	if err := netstack.CheckMTU(mtu); err != nil {
		return fmt.Errorf("setting MTU: %w", err)
	}
	s.addressesMu.Lock()
	defer s.addressesMu.Unlock()
	s.device.setMTU(mtu)
	return nil
}

// SetAddresses replaces the own addresses. Either all of them are usable and
// taken, or none is.
func (s *Stack) SetAddresses(addresses []netip.Prefix) error {
	if err := netstack.CheckAddresses(addresses); err != nil {
		return fmt.Errorf("setting addresses: %w", err)
	}
	wanted := slices.Clone(addresses)

	s.addressesMu.Lock()
	defer s.addressesMu.Unlock()
	return s.open(func() error {
		had := *s.addresses.Load()
		for _, prefix := range wanted {
			if netstack.HasAddress(had, prefix.Addr()) {
				continue
			}
			if err := s.addAddress(prefix.Addr()); err != nil {
				for _, added := range wanted {
					if added == prefix {
						break
					}
					if !netstack.HasAddress(had, added.Addr()) {
						s.stack.RemoveAddress(nicID, addressOf(added.Addr()))
					}
				}
				return fmt.Errorf("adding address %v: %w", prefix, err)
			}
		}
		for _, prefix := range had {
			if !netstack.HasAddress(wanted, prefix.Addr()) {
				s.stack.RemoveAddress(nicID, addressOf(prefix.Addr()))
			}
		}
		s.stack.SetRouteTable(routes(wanted))
		s.addresses.Store(&wanted)
		return nil
	})
}

// addAddress gives the interface an address of its own. It has no prefix
// there: a tunnel has no broadcast addresses, and what is behind it is
// WireGuard's to know.
func (s *Stack) addAddress(addr netip.Addr) error {
	return errno(s.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
		Protocol:          networkOf(addr),
		AddressWithPrefix: addressOf(addr).WithPrefix(),
	}, stack.AddressProperties{PEB: stack.CanBePrimaryEndpoint}))
}

// routes leads everything into the tunnel. The source of a connection is the
// address whose prefix holds its destination, the longest first, or else the
// first of the family.
func routes(addresses []netip.Prefix) []tcpip.Route {
	sorted := slices.Clone(addresses)
	slices.SortStableFunc(sorted, func(a, b netip.Prefix) int { return b.Bits() - a.Bits() })
	var table []tcpip.Route
	for _, prefix := range sorted {
		subnet, err := tcpip.NewSubnet(
			addressOf(prefix.Masked().Addr()),
			tcpip.MaskFromBytes(net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())),
		)
		if err != nil {
			continue
		}
		table = append(table, tcpip.Route{Destination: subnet, NIC: nicID, SourceHint: addressOf(prefix.Addr())})
	}
	for _, subnet := range []tcpip.Subnet{header.IPv4EmptySubnet, header.IPv6EmptySubnet} {
		route := tcpip.Route{Destination: subnet, NIC: nicID}
		for _, prefix := range addresses {
			if addr := addressOf(prefix.Addr()); addr.Len() == subnet.ID().Len() {
				route.SourceHint = addr
				break
			}
		}
		table = append(table, route)
	}
	return table
}

// networkOf returns the network protocol of an address.
func networkOf(addr netip.Addr) tcpip.NetworkProtocolNumber {
	if addr.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// addressOf returns the stack's form of an address.
func addressOf(addr netip.Addr) tcpip.Address {
	if addr.Is4() {
		return tcpip.AddrFrom4(addr.As4())
	}
	return tcpip.AddrFrom16(addr.As16())
}

// fullAddress returns the stack's form of an address and port, in which the
// unspecified address is empty.
func fullAddress(addr netip.AddrPort) tcpip.FullAddress {
	full := tcpip.FullAddress{Port: addr.Port()}
	if a := addr.Addr(); a.IsValid() && !a.IsUnspecified() {
		full.Addr = addressOf(a)
	}
	return full
}

// addrPortOf is the reverse of fullAddress.
func addrPortOf(full tcpip.FullAddress) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(full.Addr.AsSlice())
	return netip.AddrPortFrom(addr.Unmap(), full.Port)
}
