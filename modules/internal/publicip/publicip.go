// Package publicip tells the addresses that can be reached from everywhere from those
// that cannot.
package publicip

import (
	"fmt"
	"net/netip"
	"slices"
)

// shared is the IPv4 that providers have behind their NAT (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// special are further blocks that no packet from elsewhere reaches (RFC 6890 and the
// registries of IANA that it has begun). Those that are for documentation and for tests
// are not among them.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("192.0.0.0/24"), // a machine's own end of DS-Lite or 464XLAT
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"), // a NAT64 of one's own
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("fec0::/10"),
}

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
	case address.IsLinkLocalUnicast(), address.IsLoopback(), address.IsMulticast(),
		slices.ContainsFunc(special, func(block netip.Prefix) bool { return block.Contains(address) }):
		why = "is not reached from elsewhere"
	default:
		return nil
	}
	return fmt.Errorf("%s %s", address, why)
}
