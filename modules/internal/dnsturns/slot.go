package dnsturns

import "strings"

const duckDNS = ".duckdns.org"

// Slot is the name whose one TXT value answers a DNS-01 challenge for
// identifier, or "" if identifier is no name below duckdns.org. DuckDNS keeps
// a single TXT value per domain, and answers with it for the domain and every
// name below it (https://www.duckdns.org/spec.jsp), so example.duckdns.org,
// *.example.duckdns.org and a.b.example.duckdns.org share a slot.
func Slot(identifier string) string {
	name := strings.ToLower(strings.TrimSuffix(identifier, "."))
	below, ok := strings.CutSuffix(name, duckDNS)
	if !ok {
		return ""
	}
	label := below[strings.LastIndexByte(below, '.')+1:]
	if label == "" || label == "*" {
		return ""
	}
	return label + duckDNS
}

// record is the name that a CA asks for the TXT value. A name and the wildcard
// of its siblings' parent have different ones, a name and the wildcard below
// it the same (RFC 8555 section 8.4).
func record(identifier string) string {
	name := strings.ToLower(strings.TrimSuffix(identifier, "."))
	return "_acme-challenge." + strings.TrimPrefix(name, "*.")
}
