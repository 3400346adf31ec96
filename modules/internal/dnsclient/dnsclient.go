// Package dnsclient asks DNS servers of one's own choice, where package net would ask
// those of the machine, and /etc/hosts before them.
package dnsclient

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

// Ask asks the servers, each a host with a port, in their order for records of a name
// and returns the answer of the first that has one: there may be no such records, and
// no such name. An answer that is too long for UDP it gets by TCP. The error is that of
// the last server.
func Ask(ctx context.Context, name string, recordType uint16, servers []string) ([]dns.RR, error) {
	question := new(dns.Msg)
	question.SetQuestion(dns.Fqdn(name), recordType)
	err := errors.New("there is no DNS server to ask")
	for _, server := range servers {
		var answer *dns.Msg
		answer, _, err = new(dns.Client).ExchangeContext(ctx, question, server)
		if err == nil && answer.Truncated {
			answer, _, err = (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, question, server)
		}
		if err != nil {
			continue
		}
		if answer.Rcode == dns.RcodeSuccess || answer.Rcode == dns.RcodeNameError {
			return answer.Answer, nil
		}
		err = fmt.Errorf("%s answers %s", server, dns.RcodeToString[answer.Rcode])
	}
	return nil, err
}
