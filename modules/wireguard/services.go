package wireguard

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// service is a port of the relay, or a range of them, that goes home.
type service struct {
	udp           bool
	relay, home   portRange
	proxyProtocol bool
}

// portRange is from first to last; one port if they are the same.
type portRange struct{ first, last int }

func (r portRange) String() string {
	if r.first == r.last {
		return strconv.Itoa(r.first)
	}
	return fmt.Sprintf("%d-%d", r.first, r.last)
}

func (r portRange) has(port int) bool { return r.first <= port && port <= r.last }

// mailPorts are those at which a mail server takes mail. It relays for whoever it
// takes for one of its own network.
var mailPorts = []int{25, 465, 587}

// adminPort is that of Caddy's admin API.
const adminPort = 2019

// serviceSyntax is how a service is written.
const serviceSyntax = "<relay's port>[:<home's port>][/udp][/proxy_protocol], such as 2022:22, 6514, 19132/udp or 7000-7010"

// parseService reads a service: 2022:22 is TCP port 22 at home by the relay's port
// 2022, 6514 the same port at both, 7000-7010:8000-8010 a range. After it may stand
// /udp, and /proxy_protocol if home's program is to be told its clients with that.
func parseService(text string) (s service, err error) {
	ports, options, _ := strings.Cut(text, "/")
	for _, option := range strings.Split(options, "/") {
		switch option {
		case "udp":
			s.udp = true
		case "proxy_protocol":
			s.proxyProtocol = true
		case "", "tcp":
		default:
			return service{}, fmt.Errorf("service %s: there is no /%s; write %s", text, option, serviceSyntax)
		}
	}
	relay, home, two := strings.Cut(ports, ":")
	if s.relay, err = parsePortRange(relay); err != nil {
		return service{}, fmt.Errorf("service %s: %w; write %s", text, err, serviceSyntax)
	}
	if s.home = s.relay; two {
		if s.home, err = parsePortRange(home); err != nil {
			return service{}, fmt.Errorf("service %s: %w; write %s", text, err, serviceSyntax)
		}
	}
	if s.home.last-s.home.first != s.relay.last-s.relay.first {
		return service{}, fmt.Errorf("service %s: the two ranges differ in size", text)
	}
	return s, nil
}

func parsePortRange(text string) (portRange, error) {
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	var ports [2]int
	for i, text := range []string{first, last} {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return portRange{}, fmt.Errorf("%q is no port from 1 to 65535", text)
		}
		ports[i] = int(port)
	}
	if ports[0] > ports[1] {
		return portRange{}, fmt.Errorf("the range %s ends before it begins", text)
	}
	return portRange{ports[0], ports[1]}, nil
}

// takesMail tells whether a mail server may be behind the service.
func (s service) takesMail() bool {
	return !s.udp && slices.ContainsFunc(mailPorts, s.home.has)
}

// overlaps tells whether two services want the same port of the relay.
func (s service) overlaps(other service) bool {
	return s.udp == other.udp && s.relay.first <= other.relay.last && other.relay.first <= s.relay.last
}

func (s service) network() string {
	if s.udp {
		return "udp"
	}
	return "tcp"
}

// checkServices returns what keeps services from being the relay's beside ports that it
// has already.
func checkServices(services, taken []service, transparent bool) error {
	for i, s := range services {
		if s.takesMail() && !transparent && !s.proxyProtocol {
			return fmt.Errorf("service %s: a mail server at home would see the relay as the client of all mail, and may take it for its own network and relay for the whole internet; let it see the clients, with --transparent, or with /proxy_protocol behind the port if it takes the PROXY protocol there (Postfix: smtpd_upstream_proxy_protocol)", s.relay)
		}
		if !s.udp && (s.relay.has(adminPort) || s.home.has(adminPort)) {
			return fmt.Errorf("service %s: TCP port %d is that of Caddy's admin API, at the VM and at a home that runs this binary, and whoever reaches it there can do everything; leave it out", s.relay, adminPort)
		}
		for _, other := range slices.Concat(taken, services[:i]) {
			if s.overlaps(other) {
				return fmt.Errorf("service %s: the relay's %s port %s is taken already", s.relay, strings.ToUpper(s.network()), other.relay)
			}
		}
	}
	return nil
}

// serviceText is a service as a Caddyfile has it.
type serviceText struct {
	Listen, Upstream string
	Options          []string
}

// atRelay is the service in the relay's Caddyfile.
func (s service) atRelay(peer string, transparent bool) serviceText {
	text := serviceText{Listen: ":" + s.relay.String(), Upstream: peer + ":" + s.home.String()}
	if s.udp {
		text.Listen = "udp/" + text.Listen
	}
	if s.proxyProtocol {
		text.Options = append(text.Options, "proxy_protocol v2")
	} else if transparent {
		text.Options = append(text.Options, "transparent")
	}
	return text
}

// atHome is the service in the Caddyfile of a home that runs this binary.
func (s service) atHome(tunnel string) serviceText {
	text := serviceText{Listen: "wireguard/" + tunnel + ":" + s.home.String(), Upstream: "127.0.0.1:" + s.home.String(), Options: []string{"direct"}}
	if s.udp {
		text.Listen = strings.Replace(text.Listen, "wireguard/", "wireguard+udp/", 1)
	}
	return text
}
