package fakeduckdns

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// NameServer is the name that the zone's NS record gives. Server.Host must
// say where it is for clients that ask the zone's own servers.
const NameServer = "ns1.duckdns.org"

// ServeDNS answers for the zone with authority, and for the other hosts that
// the server knows as a resolver would.
func (s *Server) ServeDNS(w dns.ResponseWriter, request *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(request)
	reply.RecursionAvailable = true
	if len(request.Question) == 1 {
		s.answer(reply, request.Question[0])
	} else {
		reply.Rcode = dns.RcodeFormatError
	}
	w.WriteMsg(reply)
}

func (s *Server) answer(reply *dns.Msg, question dns.Question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.ToLower(question.Name)
	if target, ok := s.aliases[name]; ok {
		reply.Answer = []dns.RR{&dns.CNAME{
			Hdr:    dns.RR_Header{Name: question.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: s.ttl},
			Target: target,
		}}
		if question.Qtype == dns.TypeCNAME {
			return
		}
		name, question.Name = target, target
	}
	header := func(kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: question.Name, Rrtype: kind, Class: dns.ClassINET, Ttl: s.ttl}
	}
	add := func(records ...dns.RR) { reply.Answer = append(reply.Answer, records...) }
	soa := &dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: s.ttl},
		Ns:  NameServer + ".", Mbox: "hostmaster." + zone,
		Serial: uint32(len(s.updates) + 1), Refresh: 6000, Retry: 120, Expire: 2419200, Minttl: 600,
	}
	inZone := dns.IsSubDomain(zone, name)
	reply.Authoritative = inZone
	address, known := s.hosts[name]
	d := s.domain(name)
	switch {
	case d != nil && !known:
		switch question.Qtype {
		case dns.TypeA, dns.TypeAAAA:
			add(addressRecord(header, question.Qtype, d.a)...)
			add(addressRecord(header, question.Qtype, d.aaaa)...)
		case dns.TypeTXT:
			if d.txt != "" {
				add(&dns.TXT{Hdr: header(dns.TypeTXT), Txt: []string{d.txt}})
			}
		}
	case known:
		add(addressRecord(header, question.Qtype, address)...)
	case name == zone || s.aliasZone(name):
		switch question.Qtype {
		case dns.TypeSOA:
			soa.Hdr.Name = name
			add(soa)
		case dns.TypeNS:
			add(&dns.NS{Hdr: header(dns.TypeNS), Ns: NameServer + "."})
		}
	default:
		reply.Rcode = dns.RcodeNameError
	}
	if inZone && len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{soa}
	}
}

// aliasZone reports whether a name is the zone of an alias.
func (s *Server) aliasZone(name string) bool {
	for alias := range s.aliases {
		if labels := dns.Split(alias); len(labels) >= 2 && alias[labels[len(labels)-2]:] == name {
			return true
		}
	}
	return false
}

// domain is the one that a name is at or below.
func (s *Server) domain(name string) *domain {
	below, ok := strings.CutSuffix(name, "."+zone)
	if !ok {
		return nil
	}
	return s.domains[below[strings.LastIndexByte(below, '.')+1:]]
}

// addressRecord is the record of kind A or AAAA, if the address is of it.
func addressRecord(header func(uint16) dns.RR_Header, kind uint16, address netip.Addr) []dns.RR {
	switch {
	case kind == dns.TypeA && address.Is4():
		return []dns.RR{&dns.A{Hdr: header(kind), A: address.AsSlice()}}
	case kind == dns.TypeAAAA && address.Is6():
		return []dns.RR{&dns.AAAA{Hdr: header(kind), AAAA: address.AsSlice()}}
	}
	return nil
}

// ListenDNS serves DNS on the sockets until the test ends.
func (s *Server) ListenDNS(t testing.TB, udp net.PacketConn, tcp net.Listener) {
	t.Helper()
	for _, server := range []*dns.Server{
		{PacketConn: udp, Handler: s},
		{Listener: tcp, Handler: s},
	} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error, 1)
		go func() { ended <- server.ActivateAndServe() }()
		select {
		case <-started:
		case err := <-ended:
			t.Fatalf("serving DNS: %v", err)
		}
		t.Cleanup(func() {
			server.Shutdown()
			<-ended
		})
	}
}
