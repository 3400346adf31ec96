package ddns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/caddyserver/certmagic"
	"github.com/miekg/dns"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/dnsclient"
)

// duckDNSZone is one that needs no question.
const duckDNSZone = "duckdns.org."

// resolvConf has the DNS servers of this machine, where there is such a file.
const resolvConf = "/etc/resolv.conf"

// nameServers are those of this machine, as host:port.
func nameServers() (servers []string) {
	config, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		return nil
	}
	for _, server := range config.Servers {
		servers = append(servers, net.JoinHostPort(server, config.Port))
	}
	return servers
}

// lookup returns the one address that a name has in DNS. It does not ask package net, for
// which a line in /etc/hosts would do.
func lookup(ctx context.Context, name string, family family) (netip.Addr, error) {
	kind := dns.TypeAAAA
	if family.is4 {
		kind = dns.TypeA
	}
	records, err := dnsclient.Ask(ctx, name, kind, nameServers())
	if err != nil {
		return netip.Addr{}, err
	}
	var found []netip.Addr
	for _, rr := range records {
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		default:
			continue
		}
		address, _ := netip.AddrFromSlice(ip)
		found = append(found, address.Unmap())
	}
	if len(found) != 1 {
		return netip.Addr{}, fmt.Errorf("there are %d addresses", len(found))
	}
	return found[0], nil
}

// findZone returns the zone of the name, with a final dot.
func (t *target) findZone(ctx context.Context, logger *zap.Logger) (string, error) {
	switch {
	case t.zone != "":
		return dns.Fqdn(t.zone), nil
	case dns.IsSubDomain(duckDNSZone, dns.Fqdn(strings.ToLower(t.name))):
		return duckDNSZone, nil
	}
	servers := nameServers()
	if len(servers) == 0 {
		return "", fmt.Errorf("finding the zone of %s: this machine has no DNS servers in %s; name it with zone", t.name, resolvConf)
	}
	zone, err := certmagic.FindZoneByFQDN(ctx, logger, strings.TrimPrefix(t.name, "*."), servers)
	if err != nil {
		return "", fmt.Errorf("finding the zone of %s: %w; name it with zone", t.name, err)
	}
	return zone, nil
}
