package fakeduckdns

import (
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/homeward-relay/homeward/tests/testnet"
)

const token = "a7c4d0ad-114e-40ef-ba1d-d217904a50f2"

func TestUpdate(t *testing.T) {
	for _, tt := range []struct {
		name, query, want string
		a, aaaa           string
	}{
		{"client's own address", "domains=example&token=" + token, "OK", "192.0.2.1", ""},
		{"IPv6 alone", "domains=example&token=" + token + "&ipv6=2001:db8::1", "OK", "192.0.2.222", "2001:db8::1"},
		{"full name, verbose", "domains=example.duckdns.org&token=" + token + "&ip=192.0.2.9&verbose=true", "OK\n192.0.2.9\n\nUPDATED", "192.0.2.9", ""},
		{"wrong token", "domains=example&token=no", "KO", "192.0.2.222", ""},
		{"unknown domain", "domains=other&token=" + token, "KO", "192.0.2.222", ""},
		{"no address", "domains=example&ip=x&token=" + token, "KO", "192.0.2.222", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(token, "example")
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest("GET", "/update?"+tt.query, nil))
			if got := w.Body.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if a, aaaa := s.Addresses("example"); text(a) != tt.a || text(aaaa) != tt.aaaa {
				t.Errorf("addresses %v %v", a, aaaa)
			}
		})
	}
}

// TXT values: one per domain, told apart when two clients mix.
func TestCollisions(t *testing.T) {
	s := New(token, "example", "other")
	update := func(query string) {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", "/update?token="+token+"&"+query, nil))
		if w.Body.String() != "OK" {
			t.Fatalf("%s: %s", query, w.Body)
		}
	}
	update("domains=example&txt=one")
	update("domains=other&txt=two")
	update("domains=example&txt=one&clear=true")
	update("domains=example&txt=three")
	for _, u := range s.Updates() {
		if c := u.Collision(); c != "" {
			t.Errorf("taken for a collision: %s", c)
		}
	}
	update("domains=example&txt=four")
	update("domains=example&txt=three&clear=true")
	var collisions []string
	for _, u := range s.Updates() {
		if c := u.Collision(); c != "" {
			collisions = append(collisions, c)
		}
	}
	if len(collisions) != 2 {
		t.Errorf("got %q, want two", collisions)
	}
}

func TestDNS(t *testing.T) {
	s := New(token, "example")
	s.domains["example"].txt = "value"
	s.domains["example"].a = netip.MustParseAddr("192.0.2.9")
	s.Host(NameServer, netip.MustParseAddr("192.0.2.53"))
	s.Alias("_acme-challenge.www.example.net", "example.duckdns.org")
	s.Host("ca.example.com", netip.MustParseAddr("2001:db8::1"))
	udp, tcp := testnet.ListenUDPAndTCP(t)
	s.ListenDNS(t, udp, tcp)
	for _, tt := range []struct {
		name  string
		kind  uint16
		rcode int
		want  []string
	}{
		{"example.duckdns.org.", dns.TypeTXT, dns.RcodeSuccess, []string{`"value"`}},
		{"_acme-challenge.Sub.example.duckdns.org.", dns.TypeTXT, dns.RcodeSuccess, []string{`"value"`}},
		{"a.b.example.duckdns.org.", dns.TypeA, dns.RcodeSuccess, []string{"192.0.2.9"}},
		{"example.duckdns.org.", dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"example.duckdns.org.", dns.TypeSOA, dns.RcodeSuccess, nil},
		{"duckdns.org.", dns.TypeSOA, dns.RcodeSuccess, []string{"ns1.duckdns.org. hostmaster.duckdns.org. 1 6000 120 2419200 600"}},
		{"duckdns.org.", dns.TypeNS, dns.RcodeSuccess, []string{"ns1.duckdns.org."}},
		{"ns1.duckdns.org.", dns.TypeA, dns.RcodeSuccess, []string{"192.0.2.53"}},
		{"ca.example.com.", dns.TypeAAAA, dns.RcodeSuccess, []string{"2001:db8::1"}},
		{"_acme-challenge.www.example.net.", dns.TypeTXT, dns.RcodeSuccess, []string{"example.duckdns.org.", `"value"`}},
		{"_acme-challenge.www.example.net.", dns.TypeA, dns.RcodeSuccess, []string{"example.duckdns.org.", "192.0.2.9"}},
		{"_acme-challenge.www.example.net.", dns.TypeCNAME, dns.RcodeSuccess, []string{"example.duckdns.org."}},
		{"www.example.net.", dns.TypeSOA, dns.RcodeNameError, nil},
		{"example.net.", dns.TypeSOA, dns.RcodeSuccess, []string{"ns1.duckdns.org. hostmaster.duckdns.org. 1 6000 120 2419200 600"}},
		{"unknown.duckdns.org.", dns.TypeTXT, dns.RcodeNameError, nil},
		{"example.com.", dns.TypeA, dns.RcodeNameError, nil},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(tt.name+dns.TypeToString[tt.kind]+" "+network, func(t *testing.T) {
				client := &dns.Client{Net: network}
				reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(tt.name, tt.kind), udp.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, rr := range reply.Answer {
					got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
				}
				if reply.Rcode != tt.rcode || !slices.Equal(got, tt.want) {
					t.Errorf("got %s %q, want %s %q", dns.RcodeToString[reply.Rcode], got, dns.RcodeToString[tt.rcode], tt.want)
				}
			})
		}
	}
}
