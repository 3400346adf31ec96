package kernelns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The namespace's routing, in full:
//
//	rule 1: from the TUN, by a link-local address → nothing
//	rule 2: from the TUN   → table inbound: our addresses and our clients', else nothing
//	rule 3: from the TUN   → nothing
//	rule 4: from ourselves → table local
//	rule 5: from ourselves → table main: everything leaves by the TUN
//
// Rule 1 is for IPv6, where only routers have such addresses to speak from, and a peer
// could be one: the kernel would take routes, an MTU and a hop limit from it.
//
// Rule 3 is for link-local and multicast destinations of IPv6, for which the
// kernel overlooks a blackhole in a table, since that is on no interface.
//
// The rule for table local that the kernel begins with comes first, and with
// it a host whose settings new namespaces inherit (route_localnet, ip_forward,
// accept_local on a machine with containers) could let a peer reach the
// namespace's loopback, or another peer. It is taken away.
const (
	inboundTable = 100

	linkLocalPriority = 1
	inboundPriority   = 2
	nothingPriority   = 3
	localPriority     = 4

	loopbackIndex = 1

	// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
	addrGenModeNone = 1
)

// queueLength is how many packets, most of them superpackets, the TUN holds
// for its reader. It is read as fast as they can be encrypted, and what TCP
// may have under way is bounded; this is for floods of datagrams, whose
// senders a TUN cannot make wait.
const queueLength = 4096

var families = []uint8{unix.AF_INET, unix.AF_INET6}

// prepare sets up the namespace's interfaces and rules. The TUN is up then.
func (n *namespace) prepare(mtu int, ipv6 bool) error {
	if err := n.setLink(loopbackIndex, unix.IFF_UP, unix.IFF_UP, nil); err != nil {
		return fmt.Errorf("bringing up the loopback: %w", err)
	}
	if ipv6 {
		// Without link-local addresses nothing leaves the TUN that nobody
		// has asked for: no router solicitation, no group report. A kernel
		// without IPv6 refuses.
		if err := n.setLink(n.index, 0, 0, func(e *netlink.AttributeEncoder) {
			e.Nested(unix.IFLA_AF_SPEC, func(e *netlink.AttributeEncoder) error {
				e.Nested(unix.AF_INET6, func(e *netlink.AttributeEncoder) error {
					e.Uint8(unix.IFLA_INET6_ADDR_GEN_MODE, addrGenModeNone)
					return nil
				})
				return nil
			})
		}); err != nil {
			return fmt.Errorf("turning off link-local addresses: %w", err)
		}
	}
	if err := n.setMTU(mtu); err != nil {
		return err
	}
	// Nor does a router announce itself, which a host with forwarding would
	// make of us, where there is no multicast.
	if err := n.setLink(n.index, unix.IFF_UP, unix.IFF_UP|unix.IFF_MULTICAST, func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.IFLA_TXQLEN, queueLength)
	}); err != nil {
		return fmt.Errorf("bringing up the TUN: %w", err)
	}
	for _, family := range families {
		if family == unix.AF_INET6 && !ipv6 {
			continue
		}
		if err := n.prepareRules(family); err != nil {
			return err
		}
	}
	return nil
}

func (n *namespace) prepareRules(family uint8) error {
	if err := n.setRoute(route{family: family, kind: unix.RTN_BLACKHOLE, table: inboundTable}); err != nil {
		return fmt.Errorf("adding a route: %w", err)
	}
	rules := []rule{
		{family: family, priority: inboundPriority, table: inboundTable, from: deviceName},
		{family: family, priority: nothingPriority, from: deviceName},
		{family: family, priority: localPriority, table: unix.RT_TABLE_LOCAL},
	}
	if family == unix.AF_INET6 {
		rules = append(rules, rule{family: family, priority: linkLocalPriority, from: deviceName, source: netip.MustParsePrefix("fe80::/10")})
	}
	for _, r := range rules {
		if err := n.changeRule(unix.RTM_NEWRULE, netlink.Create|netlink.Excl, r); err != nil {
			return fmt.Errorf("adding a routing rule: %w", err)
		}
	}
	err := n.changeRule(unix.RTM_DELRULE, 0, rule{family: family, priority: 0, table: unix.RT_TABLE_LOCAL})
	if err != nil {
		return fmt.Errorf("removing the first routing rule: %w", err)
	}
	return nil
}

// setLink changes an interface: those flags that are in change, and attributes.
func (n *namespace) setLink(index, flags, change uint32, attributes func(*netlink.AttributeEncoder)) error {
	fixed := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(fixed[4:], index)
	binary.NativeEndian.PutUint32(fixed[8:], flags)
	binary.NativeEndian.PutUint32(fixed[12:], change)
	return n.netlink.change(unix.RTM_NEWLINK, 0, fixed, func(e *netlink.AttributeEncoder) {
		if attributes != nil {
			attributes(e)
		}
	})
}

// setMTU sets the size of the largest packet on the TUN.
func (n *namespace) setMTU(mtu int) error {
	if err := n.setLink(n.index, 0, 0, func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.IFLA_MTU, uint32(mtu))
	}); err != nil {
		return fmt.Errorf("setting the TUN's MTU: %w", err)
	}
	return nil
}

// addAddress gives the TUN an address. It stands alone whatever its prefix: an
// IPv4 prefix would bring a broadcast address with it, and routes are added by
// hand.
func (n *namespace) addAddress(address netip.Addr) error {
	return n.changeAddress(unix.RTM_NEWADDR, netlink.Create|netlink.Replace, address)
}

func (n *namespace) removeAddress(address netip.Addr) error {
	err := n.changeAddress(unix.RTM_DELADDR, 0, address)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

func (n *namespace) changeAddress(kind netlink.HeaderType, flags netlink.HeaderFlags, address netip.Addr) error {
	fixed := make([]byte, unix.SizeofIfAddrmsg)
	fixed[0] = familyOf(address)
	fixed[1] = uint8(address.BitLen())
	binary.NativeEndian.PutUint32(fixed[4:], n.index)
	return n.netlink.change(kind, flags, fixed, func(e *netlink.AttributeEncoder) {
		e.Bytes(unix.IFA_LOCAL, address.AsSlice())
		e.Bytes(unix.IFA_ADDRESS, address.AsSlice())
		e.Uint32(unix.IFA_FLAGS, unix.IFA_F_NOPREFIXROUTE|unix.IFA_F_NODAD)
	})
}

// route is a route. The zero prefix is everything.
type route struct {
	family uint8
	kind   uint8 // unix.RTN_…
	table  uint8
	to     netip.Prefix
	source netip.Addr // the source that it suggests, if valid
	index  uint32     // the interface, or 0 for a kind that has none

	// metrics, where not zero
	mtu        uint32
	congestion string
	ecn        bool
}

// same says whether two routes are for the same packets, so that one replaces
// the other.
func (r route) same(other route) bool {
	return r.family == other.family && r.table == other.table && r.to == other.to
}

func (n *namespace) setRoute(r route) error {
	return n.changeRoute(unix.RTM_NEWROUTE, netlink.Create|netlink.Replace, r)
}

// removeRoute removes a route. One that has gone with its source address is no
// error.
func (n *namespace) removeRoute(r route) error {
	err := n.changeRoute(unix.RTM_DELROUTE, 0, r)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func (n *namespace) changeRoute(kind netlink.HeaderType, flags netlink.HeaderFlags, r route) error {
	fixed := make([]byte, unix.SizeofRtMsg)
	fixed[0] = r.family
	if r.to.IsValid() {
		fixed[1] = uint8(r.to.Bits())
	}
	fixed[4] = r.table
	fixed[5] = unix.RTPROT_STATIC
	fixed[6] = unix.RT_SCOPE_UNIVERSE
	switch r.kind {
	case unix.RTN_LOCAL:
		fixed[6] = unix.RT_SCOPE_HOST
	case unix.RTN_UNICAST:
		fixed[6] = unix.RT_SCOPE_LINK
	}
	fixed[7] = r.kind
	return n.netlink.change(kind, flags, fixed, func(e *netlink.AttributeEncoder) {
		if r.to.IsValid() && r.to.Bits() > 0 {
			e.Bytes(unix.RTA_DST, r.to.Addr().AsSlice())
		}
		if r.index != 0 {
			e.Uint32(unix.RTA_OIF, r.index)
		}
		if r.source.IsValid() {
			e.Bytes(unix.RTA_PREFSRC, r.source.AsSlice())
		}
		if r.mtu == 0 && r.congestion == "" && !r.ecn {
			return
		}
		e.Nested(unix.RTA_METRICS, func(e *netlink.AttributeEncoder) error {
			if r.mtu != 0 {
				e.Uint32(unix.RTAX_MTU, r.mtu)
			}
			if r.congestion != "" {
				e.String(unix.RTAX_CC_ALGO, r.congestion)
			}
			if r.ecn {
				e.Uint32(unix.RTAX_FEATURES, unix.RTAX_FEATURE_ECN)
			}
			return nil
		})
	})
}

// rule is a routing rule.
type rule struct {
	family   uint8
	priority uint32
	table    uint8        // 0 drops the packet
	from     string       // the interface that packets come in by; "" is any
	source   netip.Prefix // of packets; the zero value is any
}

func (n *namespace) changeRule(kind netlink.HeaderType, flags netlink.HeaderFlags, r rule) error {
	const toTable, blackhole = 1, 6 // FR_ACT_TO_TBL, FR_ACT_BLACKHOLE
	fixed := make([]byte, 12)
	fixed[0] = r.family
	if r.source.IsValid() {
		fixed[2] = uint8(r.source.Bits())
	}
	fixed[4] = r.table
	fixed[7] = toTable
	if r.table == 0 {
		fixed[7] = blackhole
	}
	return n.netlink.change(kind, flags, fixed, func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.FRA_PRIORITY, r.priority)
		if r.from != "" {
			e.String(unix.FRA_IIFNAME, r.from)
		}
		if r.source.IsValid() {
			e.Bytes(unix.FRA_SRC, r.source.Addr().AsSlice())
		}
	})
}

func familyOf(address netip.Addr) uint8 {
	if address.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
