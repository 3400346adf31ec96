// Package fakeduckdns is a DuckDNS for tests: its HTTP interface, as
// https://www.duckdns.org/spec.jsp has it, and its name server, which also
// answers as the resolver of a small internet. As with DuckDNS, a domain has
// one A, one AAAA and one TXT value, and every name below it has the same.
package fakeduckdns

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// zone is what all domains are below.
const zone = "duckdns.org."

// Server is a DuckDNS account with its domains. It is a handler for HTTP and
// for DNS.
type Server struct {
	// Token is the account's.
	Token string

	// RemovalDelay is how long the removal of a value takes. DuckDNS can be
	// slow.
	RemovalDelay time.Duration

	// Answer, if not nil, answers in place of DuckDNS as long as it returns true.
	Answer func(w http.ResponseWriter, r *http.Request) bool

	mu      sync.Mutex
	ttl     uint32 // seconds
	domains map[string]*domain
	hosts   map[string]netip.Addr
	aliases map[string]string
	updates []Update
	moves   []string
}

type domain struct {
	a, aaaa netip.Addr
	txt     string
}

// Update is a request to change a TXT value that was granted.
type Update struct {
	Domain string
	Before string // the value that the request found
	TXT    string // the value that it named
	Clear  bool   // whether it was to remove the value or to set it
}

// Collision says what is wrong with an update among ACME clients that take
// turns: it replaces a value that is still wanted, or removes another's.
func (u Update) Collision() string {
	switch {
	case u.Clear && u.Before != u.TXT:
		return fmt.Sprintf("%s: removing %q, found %q", u.Domain, u.TXT, u.Before)
	case !u.Clear && u.Before != "" && u.Before != u.TXT:
		return fmt.Sprintf("%s: setting %q, found %q", u.Domain, u.TXT, u.Before)
	}
	return ""
}

// FirstAddress is what a domain points to before its first update. (With
// DuckDNS it is the address that the domain was ordered from.)
var FirstAddress = netip.MustParseAddr("192.0.2.222")

// New makes an account that has domains, such as "example" for
// example.duckdns.org.
func New(token string, domains ...string) *Server {
	s := &Server{
		Token:   token,
		ttl:     60,
		domains: make(map[string]*domain),
		hosts:   make(map[string]netip.Addr),
		aliases: make(map[string]string),
	}
	for _, name := range domains {
		s.domains[name] = &domain{a: FirstAddress}
	}
	return s
}

// Host makes the name server know another host: name has no final dot.
func (s *Server) Host(name string, address netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[strings.ToLower(name)+"."] = address
}

// Alias makes a name outside of duckdns.org a CNAME for target, and its last
// two labels a zone. Neither has a final dot.
func (s *Server) Alias(name, target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aliases[strings.ToLower(name)+"."] = strings.ToLower(target) + "."
}

// Updates lists the changes of TXT values up to now.
func (s *Server) Updates() []Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Update(nil), s.updates...)
}

// Moves lists the requests for addresses that were granted up to now, each as the
// domain and what it named.
func (s *Server) Moves() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.moves...)
}

// Addresses are a domain's A and AAAA values, invalid where there is none.
func (s *Server) Addresses(name string) (a, aaaa netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.domains[name]; d != nil {
		return d.a, d.aaaa
	}
	return
}

// SetTTL makes all answers have another TTL than DuckDNS's 60, in seconds.
func (s *Server) SetTTL(seconds uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ttl = seconds
}

// TXT is a domain's TXT value, empty if there is none.
func (s *Server) TXT(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.domains[name].txt
}

// ServeHTTP answers GET /update.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if r.URL.Path != "/update" {
		http.NotFound(w, r)
		return
	}
	if s.Answer != nil && s.Answer(w, r) {
		return
	}
	clear := query.Get("clear") == "true"
	if clear {
		time.Sleep(s.RemovalDelay)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if query.Get("token") != s.Token {
		fmt.Fprint(w, "KO")
		return
	}
	var chosen []string
	for name := range strings.SplitSeq(query.Get("domains"), ",") {
		name = strings.TrimSuffix(strings.ToLower(name), ".duckdns.org")
		if s.domains[name] == nil {
			fmt.Fprint(w, "KO")
			return
		}
		chosen = append(chosen, name)
	}
	remote, _, _ := net.SplitHostPort(r.RemoteAddr)
	for _, name := range chosen {
		var err error
		if query.Has("txt") {
			s.updateTXT(name, query.Get("txt"), clear)
		} else {
			s.moves = append(s.moves, strings.TrimSpace(name+" "+query.Get("ip")+query.Get("ipv6")))
			err = s.domains[name].update(query.Get("ip"), query.Get("ipv6"), remote, clear)
		}
		if err != nil {
			fmt.Fprint(w, "KO")
			return
		}
	}
	fmt.Fprint(w, "OK")
	if query.Get("verbose") == "true" {
		d := s.domains[chosen[0]]
		if query.Has("txt") {
			fmt.Fprintf(w, "\n%s\nUPDATED", d.txt)
		} else {
			fmt.Fprintf(w, "\n%s\n%s\nUPDATED", text(d.a), text(d.aaaa))
		}
	}
}

func (s *Server) updateTXT(name, txt string, clear bool) {
	d := s.domains[name]
	s.updates = append(s.updates, Update{Domain: name, Before: d.txt, TXT: txt, Clear: clear})
	d.txt = txt
	if clear {
		d.txt = ""
	}
}

// update sets addresses. With neither given, IPv4 is the client's.
func (d *domain) update(ip, ipv6, remote string, clear bool) error {
	if clear {
		d.a, d.aaaa = netip.Addr{}, netip.Addr{}
		return nil
	}
	if ip == "" && ipv6 == "" {
		ip = remote
	}
	a, aaaa := d.a, d.aaaa
	var err error
	if ip != "" {
		if a, err = netip.ParseAddr(ip); err != nil {
			return err
		}
	}
	if ipv6 != "" {
		if aaaa, err = netip.ParseAddr(ipv6); err != nil {
			return err
		}
	}
	d.a, d.aaaa = a, aaaa
	return nil
}

func text(address netip.Addr) string {
	if !address.IsValid() {
		return ""
	}
	return address.String()
}
