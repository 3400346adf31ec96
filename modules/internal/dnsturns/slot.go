package dnsturns

import "strings"

const duckDNS = ".duckdns.org"

// Record is the name at which a CA reads the TXT value of a DNS-01 challenge
// for identifier, unless a CNAME leads elsewhere (RFC 8555 section 8.4). A name
// and the wildcard below it have the same.
func Record(identifier string) string {
	return "_acme-challenge." + strings.TrimPrefix(identifier, "*.")
}

// Slot is the DuckDNS domain whose one TXT value is read at record, or "" if
// record is not below duckdns.org. DuckDNS keeps a single TXT value per domain
// and answers with it for the domain and every name below it
// (https://www.duckdns.org/spec.jsp).
func Slot(record string) string {
	below, ok := strings.CutSuffix(fold(record), duckDNS)
	if !ok {
		return ""
	}
	label := below[strings.LastIndexByte(below, '.')+1:]
	if label == "" {
		return ""
	}
	return label + duckDNS
}

// fold makes two spellings of a DNS name equal.
func fold(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
