package duckdns

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/homeward-relay/homeward/modules/internal/dnsclient"
)

// lookTimeout bounds a look at DNS.
const lookTimeout = 5 * time.Second

// txt is an answer of DNS. The value is empty if there is none.
type txt struct {
	value string
	ttl   time.Duration
}

// look asks a name server of DuckDNS for the value. Others remember what was there.
func (c *challenge) look(ctx context.Context) (*txt, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	servers, err := c.nameServers(ctx)
	if err != nil {
		return nil, err
	}
	records, err := dnsclient.Ask(ctx, c.domain, dns.TypeTXT, servers)
	if err != nil {
		return nil, err
	}
	for _, rr := range records {
		if rr, ok := rr.(*dns.TXT); ok {
			return &txt{strings.Join(rr.Txt, ""), time.Duration(rr.Hdr.Ttl) * time.Second}, nil
		}
	}
	return new(txt), nil
}

// nameServersOf returns at least one server of DuckDNS's, in the same order each time: one
// may hear of a change later than another.
func nameServersOf(ctx context.Context) ([]string, error) {
	records, err := net.DefaultResolver.LookupNS(ctx, "duckdns.org")
	if err != nil {
		return nil, err
	}
	slices.SortFunc(records, func(a, b *net.NS) int { return cmp.Compare(a.Host, b.Host) })
	var servers []string
	for _, record := range records {
		addresses, lookupErr := net.DefaultResolver.LookupHost(ctx, record.Host)
		if lookupErr != nil {
			err = lookupErr
		}
		for _, address := range addresses {
			servers = append(servers, net.JoinHostPort(address, "53"))
		}
		// One that answers is enough, and a second one in case it does not.
		if len(servers) > 1 {
			break
		}
	}
	if len(servers) == 0 {
		return nil, cmp.Or(err, errors.New("duckdns.org has no name server"))
	}
	return servers, nil
}
