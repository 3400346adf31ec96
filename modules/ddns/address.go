package ddns

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/homeward-relay/homeward/modules/internal/publicip"
)

// family is a kind of address and its record.
type family struct {
	option  string // in a Caddyfile
	record  string
	network string // of the connections that have such addresses
	is4     bool
}

var families = []family{
	{option: "a", record: "A", network: "4", is4: true},
	{option: "aaaa", record: "AAAA", network: "6"},
}

// nameSyntax is a name of DNS, or a wildcard.
var nameSyntax = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// public returns an address as a record has it, or why there can be none with it.
func (f family) public(address netip.Addr) (netip.Addr, error) {
	address = address.Unmap().WithZone("")
	if !address.IsValid() || address.Is4() != f.is4 {
		return netip.Addr{}, fmt.Errorf("%s is no address for an %s record", address, f.record)
	}
	if err := publicip.Check(address); err != nil {
		return netip.Addr{}, err
	}
	return address, nil
}

// suffix is the part of an address that stays when its prefix changes.
type suffix struct {
	host   netip.Addr
	length int // of the prefix
}

// parseSuffix reads a suffix: the host's part of an address, which may begin with that
// of a subnet, and behind a slash the length of the prefix before it.
func parseSuffix(text string) (suffix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil || !prefix.Addr().Is6() || prefix.Addr().Is4In6() {
		return suffix{}, fmt.Errorf("%q is not the host's part of an IPv6 address and the length of the prefix before it, such as ::1c2d:3eff:fe4f:5a6b/64", text)
	}
	if prefix.Bits() == 0 || prefix.Bits() > 127 {
		return suffix{}, fmt.Errorf("%q has no prefix of 1 to 127 bits", text)
	}
	if prefix.Masked().Addr() != netip.IPv6Unspecified() {
		return suffix{}, fmt.Errorf("%q has something in its first %d bits, which the prefix replaces; write zeros there", text, prefix.Bits())
	}
	return suffix{prefix.Addr(), prefix.Bits()}, nil
}

// at joins the suffix to the prefix that another address has.
func (s suffix) at(other netip.Addr) netip.Addr {
	joined, host := netip.PrefixFrom(other, s.length).Masked().Addr().As16(), s.host.As16()
	for i := range joined {
		joined[i] |= host[i]
	}
	return netip.AddrFrom16(joined)
}
