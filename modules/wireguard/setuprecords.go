package wireguard

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/homeward-relay/homeward/modules/internal/dnsturns"
	"github.com/homeward-relay/homeward/modules/internal/publicip"
)

// noAddresses is what --vm-address is for a VM that is to keep no records.
const noAddresses = "none"

// records are what a relay keeps right of a domain at DuckDNS.
type records struct {
	Domain string
	A      string // the source of it, as in a Caddyfile; empty: it is left alone
	AAAA   string
	Hint   string // what could be in place of an AAAA that is left alone
}

// planRecords decides about the records that the relay keeps right.
func (p *setupPlan) planRecords() error {
	relay, _ := netip.ParseAddr(p.relay) // invalid: it is a name
	addresses := p.vmAddresses
	if len(addresses) == 0 && publicip.Check(relay) == nil {
		addresses = []string{p.relay}
	}
	ip4, ip6, err := parseVMAddresses(addresses)
	if err != nil || ip4 == "" && ip6 == "" {
		return err
	}
	for _, domain := range p.domains {
		slot := dnsturns.Slot(domain)
		if slot == "" || slices.ContainsFunc(p.records, func(r records) bool { return r.Domain == slot }) {
			continue
		}
		r := records{Domain: slot, A: ip4, AAAA: "peer " + homePeer}
		switch {
		case p.home.box.IsValid():
			r.AAAA, r.Hint = "", "aaaa peer "+homePeer+" ::1c2d:3eff:fe4f:5a6b/64    # home's prefix, and the server's own part of its IPv6"
		case relay.Is4():
			r.AAAA, r.Hint = "", "aaaa peer "+homePeer+"    # once home's `endpoint` is a name, so that it calls by IPv6"
		case ip6 == "" && !relay.Is6():
			r.AAAA, r.Hint = "", "aaaa peer "+homePeer+"    # once home calls by IPv6, which takes an IPv6 address of the VM"
		}
		if r.A != "" || r.AAAA != "" {
			p.records = append(p.records, r)
		}
	}
	if slot := dnsturns.Slot(p.relay); slot != "" {
		p.records = append(p.records, records{Domain: slot, A: ip4, AAAA: ip6})
	}
	if len(p.records) == 0 {
		return nil
	}
	if p.token == "" {
		if len(p.vmAddresses) == 0 { // it was not asked for
			p.records = nil
			return nil
		}
		return fmt.Errorf("the records at DuckDNS need its token, in the environment variable %s; or say --vm-address %s and keep them yourself", duckDNSToken, noAddresses)
	}
	return checkToken(p.token)
}

// parseVMAddresses returns the sources of the records with a VM's public addresses.
func parseVMAddresses(texts []string) (ip4, ip6 string, err error) {
	if slices.Equal(texts, []string{noAddresses}) {
		return "", "", nil
	}
	for _, text := range texts {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return "", "", fmt.Errorf("%q is no address of the VM, such as 203.0.113.5, nor is it %s", text, noAddresses)
		}
		if err := publicip.Check(address); err != nil {
			return "", "", fmt.Errorf("the VM's public address: %w", err)
		}
		source := &ip4
		if address = address.Unmap(); address.Is6() {
			source = &ip6
		}
		if *source != "" {
			return "", "", fmt.Errorf("%s is a second address of its kind; a record at DuckDNS has one", address)
		}
		*source = staticSource(address)
	}
	return ip4, ip6, nil
}

func staticSource(address netip.Addr) string { return "static " + address.String() }

// hasRecords tells whether one of the names is at DuckDNS.
func (s *setup) hasRecords() bool {
	return slices.ContainsFunc(append(slices.Clone(s.domains), s.relay), func(name string) bool { return dnsturns.Slot(name) != "" })
}

// keepsRecords tells whether the VM has been told to keep records.
func (s *setup) keepsRecords() bool {
	return s.hasRecords() && len(s.vmAddresses) > 0 && s.vmAddresses[0] != noAddresses
}

// presetVMAddresses are the VM's addresses as far as they can be known.
func (s *setup) presetVMAddresses(outgoing func() []netip.Addr) string {
	addresses := outgoing()
	if relay, err := netip.ParseAddr(s.relay); err == nil {
		addresses = slices.DeleteFunc(addresses, func(a netip.Addr) bool { return a.Is4() == relay.Is4() })
		addresses = append([]netip.Addr{relay}, addresses...)
	}
	var texts []string
	for _, address := range addresses {
		if publicip.Check(address) == nil {
			texts = append(texts, address.String())
		}
	}
	return cmp.Or(strings.Join(texts, " "), noAddresses)
}

// outgoingAddresses are those that this machine has towards the internet, one of each
// family, in place of a temporary one the one of the same interface that stays. Nothing is
// sent.
func outgoingAddresses() (addresses []netip.Addr) {
	for _, there := range []string{"198.41.0.4:53", "[2001:503:ba3e::2:30]:53"} { // a.root-servers.net
		conn, err := net.Dial("udp", there)
		if err != nil {
			continue
		}
		address := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		conn.Close()
		addresses = append(addresses, publicip.Lasting(address))
	}
	return addresses
}
