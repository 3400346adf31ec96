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
)

// zone is what all domains are below.
const zone = "duckdns.org."

// Server is a DuckDNS account with its domains. It is a handler for HTTP and
// for DNS.
type Server struct {
	// Token is the account's.
	Token string

	mu      sync.Mutex
	domains map[string]*domain
	hosts   map[string]netip.Addr
	updates []Update
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

// New makes an account that has domains, such as "example" for
// example.duckdns.org.
func New(token string, domains ...string) *Server {
	s := &Server{Token: token, domains: make(map[string]*domain), hosts: make(map[string]netip.Addr)}
	for _, name := range domains {
		s.domains[name] = new(domain)
	}
	return s
}

// Host makes the name server know another host: name has no final dot.
func (s *Server) Host(name string, address netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[strings.ToLower(name)+"."] = address
}

// Updates lists the changes of TXT values up to now.
func (s *Server) Updates() []Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Update(nil), s.updates...)
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

// ServeHTTP answers GET /update.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if r.URL.Path != "/update" {
		http.NotFound(w, r)
		return
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
	clear := query.Get("clear") == "true"
	for _, name := range chosen {
		var err error
		if query.Has("txt") {
			s.updateTXT(name, query.Get("txt"), clear)
		} else {
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
func (d *domain) update(ip, ipv6, remote string, clear bool) (err error) {
	if clear {
		d.a, d.aaaa = netip.Addr{}, netip.Addr{}
		return nil
	}
	if ip == "" && ipv6 == "" {
		ip = remote
	}
	if ip != "" {
		if d.a, err = netip.ParseAddr(ip); err != nil {
			return err
		}
	}
	if ipv6 != "" {
		if d.aaaa, err = netip.ParseAddr(ipv6); err != nil {
			return err
		}
	}
	return nil
}

func text(address netip.Addr) string {
	if !address.IsValid() {
		return ""
	}
	return address.String()
}
