package wireguard

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// homePeer is how a relay calls its first home.
const homePeer = "home"

// setupPlan is what a setup comes to.
type setupPlan struct {
	*setup
	scheme   string // of the web server at home
	webPort  int
	forwards []service // and with passthrough the web's
	services []service // of the layer4 app at home: all of that and the web server's
	records  []records // that the relay keeps right

	tunnel *tunnel.Config // the relay's
	home   newHome

	owner *owner
	newFiles
}

// plan checks what the command is told and decides about everything.
func (s *setup) plan() (*setupPlan, error) {
	if err := s.absolute(); err != nil {
		return nil, err
	}
	p := &setupPlan{setup: s}
	for _, step := range []func() error{p.check, p.planServices, p.planTunnels, p.planRecords, p.planFiles} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *setupPlan) check() (err error) {
	if p.scheme, p.webPort, err = parseWeb(p.web); err != nil {
		return err
	}
	if p.scheme != webNone && len(p.domains) == 0 {
		return errors.New("name the web site with --domain, or say --web none")
	}
	for i, domain := range p.domains {
		if err := checkDomain(domain); err != nil {
			return err
		}
		p.domains[i] = strings.ToLower(domain)
	}
	p.domains = unique(p.domains)
	if p.relay == "" {
		return errors.New("say with --relay where home calls the VM: " + whereHomeCalls)
	}
	if err := checkRelay(p.relay, p.domains); err != nil {
		return err
	}
	if (p.certificate == "") != (p.certificateKey == "") {
		return errors.New("--certificate and --certificate-key go together")
	}
	if p.certificatesNeedToken() {
		if err := p.checkDuckDNS(); err != nil {
			return err
		}
	}
	p.owner, err = ownerCalled(p.user)
	return err
}

// unique leaves each name once, where it stands first.
func unique(names []string) (once []string) {
	for _, name := range names {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once
}

// directSite tells whether a home that runs this binary answers those who come by IPv6
// itself. A web server that has the ports for that does it.
func (p *setupPlan) directSite() bool {
	return p.scheme == webHTTP && p.webPort != 80 && p.webPort != 443
}

// checkDuckDNS returns what keeps the site from getting its certificates by DuckDNS.
func (p *setupPlan) checkDuckDNS() error {
	for _, domain := range p.domains {
		if !strings.HasSuffix(strings.ToLower(domain), ".duckdns.org") {
			return fmt.Errorf("%s is not at DuckDNS, whose records the VM could prove the name with; give --certificate and --certificate-key, or let TLS end at home with --web passthrough", domain)
		}
	}
	if p.token == "" {
		return fmt.Errorf("the site's certificates need DuckDNS's token, in the environment variable %s; or give --certificate and --certificate-key, or let TLS end at home with --web passthrough", duckDNSToken)
	}
	return checkToken(p.token)
}

func (p *setupPlan) planServices() error {
	for _, text := range p.setup.services {
		s, err := parseService(text)
		if err != nil {
			return err
		}
		p.forwards = append(p.forwards, s)
	}
	p.services = slices.Clone(p.forwards)
	taken := []service{{udp: true, relay: portRange{int(p.listenPort), int(p.listenPort)}}}
	web := []service{
		{relay: portRange{80, 80}, home: portRange{80, 80}},
		{relay: portRange{443, 443}, home: portRange{443, 443}},
		{udp: true, relay: portRange{443, 443}, home: portRange{443, 443}},
	}
	if p.scheme != webNone && p.listenPort == 443 {
		return errors.New("--listen-port 443: the web site has UDP port 443 (HTTP/3); take another one")
	}
	switch p.scheme {
	case webPassthrough:
		p.services = append(slices.Clone(web), p.services...)
		defer func() { p.forwards = p.services }()
		taken = append(taken, web...)
	case webHTTPS, webHTTP:
		ports := []int{p.webPort}
		if p.scheme == webHTTPS && p.webPort != 80 {
			ports = append(ports, 80) // for HTTP-01
		}
		for _, port := range ports {
			if !slices.ContainsFunc(p.services, func(s service) bool { return !s.udp && s.home.has(port) }) {
				p.services = append([]service{{home: portRange{port, port}}}, p.services...)
			}
		}
		taken = append(taken, web...)
	}
	return checkServices(p.forwards, taken, p.transparent)
}

func (p *setupPlan) planTunnels() (err error) {
	texts := p.addresses
	if len(texts) == 0 {
		if texts = []string{"10.77.0.1/24"}; p.transparent {
			texts = append(texts, "fd77::1/64")
		}
	}
	relay := &tunnel.Config{PrivateKey: tunnel.NewPrivateKey(), ListenPort: p.listenPort}
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || prefix.IsSingleIP() {
			return fmt.Errorf("--address %s is no address with the length of its network, such as 10.77.0.1/24", text)
		}
		relay.Addresses = append(relay.Addresses, prefix)
	}
	p.home = newHome{name: homePeer, endpoint: endpointAt(p.relay, p.listenPort), transparent: p.transparent}
	if err := p.home.behindFritzBox(p.fritzBox, p.server); err != nil {
		return err
	}
	p.tunnel, err = p.home.join(relay)
	return err
}

func (p *setupPlan) planFiles() error {
	homeFolder := filepath.Join(p.folder, homePeer)
	p.folders = []newFile{{path: p.folder, mode: 0o750, owner: p.owner}, {path: homeFolder, mode: 0o700}}
	environment := []byte(duckDNSToken + "=" + p.token + "\n")

	t, err := asTunnel(p.tunnel)
	if err != nil {
		return fmt.Errorf("writing the relay's tunnel: %w", err)
	}
	keys := t.moveKeys(defaultTunnel, p.folder)
	caddyfile, err := p.relayCaddyfile(t.MarshalCaddyfile(defaultTunnel, nil))
	if err != nil {
		return err
	}
	p.files = append([]newFile{{path: filepath.Join(p.folder, "Caddyfile"), mode: 0o640, content: caddyfile, owner: p.owner}},
		keyFiles(keys, p.folder, p.owner)...)
	if p.certificatesNeedToken() || len(p.records) > 0 {
		// systemd reads it, as root.
		p.files = append(p.files, newFile{path: filepath.Join(p.folder, "caddy.env"), mode: 0o600, content: environment})
	}

	files, err := p.home.files(p.tunnel, homeFolder, p.homeFolder, p.homeCaddyfile)
	if err != nil {
		return err
	}
	p.files = append(p.files, files...)
	if p.certificatesNeedToken() && p.directSite() && !p.home.box.IsValid() {
		p.files = append(p.files, newFile{path: filepath.Join(homeFolder, "caddy.env"), mode: 0o600, content: environment})
	}
	return nil
}
