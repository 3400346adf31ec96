// Package publicip tells the addresses that can be reached from everywhere from those
// that cannot.
package publicip

import (
	"fmt"
	"net/netip"
)

// shared is the IPv4 that providers have behind their NAT (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// Check returns why nobody elsewhere could reach an address, or nil.
func Check(address netip.Addr) error {
	why := ""
	switch address = address.Unmap(); {
	case !address.IsValid():
		why = "is no address"
	case shared.Contains(address):
		why = "is behind the provider's NAT (CGN)"
	case address.IsPrivate() && address.Is4():
		why = "is a private address"
	case address.IsPrivate():
		why = "is a unique local address (ULA)"
	case address.IsLinkLocalUnicast(), address.IsLoopback(), address.IsMulticast(), address.IsUnspecified(), address == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		why = "is not reached from elsewhere"
	default:
		return nil
	}
	return fmt.Errorf("%s %s", address, why)
}
