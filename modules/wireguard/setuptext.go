package wireguard

import (
	"bytes"
	"embed"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/homeward-relay/homeward/modules/internal/dnsturns"
)

//go:embed setup/*.Caddyfile
var setupCaddyfiles embed.FS

var setupTemplates = template.Must(template.New("").Funcs(template.FuncMap{
	"indent": func(block string) string {
		return "\t" + strings.ReplaceAll(strings.TrimSuffix(block, "\n"), "\n", "\n\t")
	},
	"list": func(prefix string, names []string) string {
		return prefix + strings.Join(names, ", "+prefix)
	},
}).ParseFS(setupCaddyfiles, "setup/*.Caddyfile"))

// setupText is what the Caddyfiles' templates take.
type setupText struct {
	Names     string // for comments
	Folder    string
	User      string
	Storage   string
	ErrorLog  string
	AccessLog string
	Block     string // the tunnel's
	Records   []records
	Services  []serviceText
	Refused   []string // why services are missing
	Domains   []string
	Proxied   bool   // the relay answers HTTPS
	Web       string // what sites ask

	// HomeProves says that home has certificates of its own, which it may get by HTTP-01.
	HomeProves bool

	TLS string
}

func (p *setupPlan) text(folder, block string) setupText {
	text := setupText{
		Names:     strings.Join(p.domains, ", "),
		Folder:    folder,
		User:      p.user,
		Storage:   caddyfileToken(p.storage),
		ErrorLog:  caddyfileToken(filepath.Join(p.logs, "error.log")),
		AccessLog: caddyfileToken(filepath.Join(p.logs, "access.log")),
		Block:     block,
		Domains:   p.domains,
		TLS:       "{\n\t\tdns duckdns {env." + duckDNSToken + "}\n\t}",
	}
	if text.Names == "" {
		text.Names = p.relay
	}
	if p.certificate != "" {
		text.TLS = "{\n\t\tget_certificate file " + caddyfileToken(p.certificate) + " " + caddyfileToken(p.certificateKey) + "\n\t}"
	}
	return text
}

func (p *setupPlan) relayCaddyfile(block string) ([]byte, error) {
	text := p.text(p.folder, block)
	text.Records = p.records
	for _, s := range p.forwards {
		text.Services = append(text.Services, s.atRelay(homePeer, p.transparent))
	}
	switch p.scheme {
	case webHTTPS:
		text.Proxied, text.Web, text.HomeProves = true, "https://"+homePeer, true
		if p.webPort != 443 {
			text.Web += ":" + strconv.Itoa(p.webPort)
		}
	case webHTTP:
		text.Proxied, text.Web = true, "http://"+homePeer+":"+strconv.Itoa(p.webPort)
	}
	return executeSetup("relay.Caddyfile", text)
}

func (p *setupPlan) homeCaddyfile(block string) ([]byte, error) {
	text := p.text(p.homeFolder, block)
	for _, s := range p.services {
		if s.takesMail() && !s.proxyProtocol {
			text.Refused = append(text.Refused, fmt.Sprintf("Port %s is left out: the mail server would take all mail for this machine's own.", s.home))
			continue
		}
		text.Services = append(text.Services, s.atHome(defaultTunnel))
	}
	if p.directSite() {
		text.Web = "127.0.0.1:" + strconv.Itoa(p.webPort)
	}
	return executeSetup("home.Caddyfile", text)
}

func executeSetup(name string, text setupText) ([]byte, error) {
	var b bytes.Buffer
	if err := setupTemplates.ExecuteTemplate(&b, name, text); err != nil {
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	return b.Bytes(), nil
}

// summary says what has been written and what is to be done with it.
func (p *setupPlan) summary() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	say("Written:")
	for _, file := range p.files {
		say("  %s", file.path)
	}

	say("\nOn the VM:")
	if p.owner == nil {
		say("  The files belong to you, and not to Caddy's user yet. As root, once they are in %s:", p.folder)
		say("    chown %s %s", p.user, strings.Join(p.shellPaths(p.folder), " "))
	}
	say("  systemctl enable --now homeward          # or: systemctl reload homeward")
	say("  Take %s home, then off the VM: it has home's keys.", shellWord(filepath.Join(p.folder, homePeer)))

	say("\nAt home:")
	if p.home.box.IsValid() {
		say("  Import fritzbox.conf: Internet, Permit Access, VPN (WireGuard), Add Connection,")
		say("  Connect networks or establish special connections, set up at the other end: yes.")
	} else {
		say("  Either any WireGuard, as root:")
		say("    install -m 600 %s.conf /etc/wireguard/ && systemctl enable --now wg-quick@%[1]s", defaultTunnel)
		say("  or this binary, installed as on the VM, and as root:")
		say("    install -d -g %s -m 750 %s", p.user, shellWord(p.homeFolder))
		say("    install -o %s -g %[1]s -m 600 %s %s/", p.user, strings.Join(p.ownFiles(), " "), shellWord(p.homeFolder))
		say("    systemctl enable --now homeward")
		if p.directSite() && p.certificate != "" {
			say("    with copies of %s and %s, at the same places", p.certificate, p.certificateKey)
		}
	}
	relay := p.tunnel.Addresses[0].Addr()
	if p.transparent {
		say("  Its firewall must let everybody in from the tunnel, at the services' ports.")
		if slices.ContainsFunc(p.forwards, func(s service) bool { return s.udp }) {
			say("  A UDP program there must listen on %s, and not on 0.0.0.0; or the README has", p.tunnel.Peers[0].AllowedIPs[0].Addr())
			say("  more rules for it, under \"Every program at home sees the client\".")
		}
	} else {
		say("  Its firewall must let %s in at the services' ports, and answer its pings.", relay)
	}

	say("\nOpen on the VM, at its provider and in its input chain:")
	udp, tcp := p.ports()
	say("  UDP %s", joinPorts(udp, ", "))
	if len(tcp) > 0 {
		say("  TCP %s", joinPorts(tcp, ", "))
		say("  nft add rule inet filter input tcp dport { %s } accept", joinPorts(tcp, ", "))
	}
	say("  nft add rule inet filter input udp dport { %s } accept", joinPorts(udp, ", "))
	for _, s := range p.forwards {
		if !s.udp && s.relay.has(22) {
			say("  The VM's own sshd must not be at port 22 any more.")
		}
	}

	p.sayName(say)
	p.sayRecords(say)
	return b.String()
}

// sayName says by which name the ports are used.
func (p *setupPlan) sayName(say func(format string, args ...any)) {
	name := p.relay
	var ports []string
	for _, s := range p.forwards {
		if p.scheme != webPassthrough || !s.relay.has(80) && !s.relay.has(443) {
			ports = append(ports, s.relay.String())
		}
	}
	if len(p.domains) == 0 || len(ports) == 0 {
		return
	}
	if _, err := netip.ParseAddr(name); err == nil {
		name = "the VM's address"
	}
	say("\nPorts that go home (%s) are used by %s:", strings.Join(ports, ", "), name)
	say("  by %s those who have IPv6 call home itself.", p.domains[0])
}

// sayRecords says which records are still to be set.
func (p *setupPlan) sayRecords(say func(format string, args ...any)) {
	begin := "\nIn DNS:\n"
	line := func(format string, args ...any) {
		say(begin+"  "+format, args...)
		begin = ""
	}
	kept := func(name string) *records {
		i := slices.IndexFunc(p.records, func(r records) bool { return r.Domain == dnsturns.Slot(name) })
		if i < 0 {
			return nil
		}
		return &p.records[i]
	}
	for _, domain := range p.domains {
		switch r := kept(domain); {
		case r == nil:
			line("%s: A is the VM's address, AAAA is home's.", domain)
		case r.A != "" && r.AAAA != "":
			line("%s: the VM keeps its records right. AAAA is home, once home answers there at port 443.", domain)
		case r.A != "":
			line("%s: the VM keeps A right. AAAA is home's: the block `ddns` of the Caddyfile says how it can be kept.", domain)
		default:
			line("%s: the VM keeps AAAA right. A is the VM's address.", domain)
		}
	}
	if _, err := netip.ParseAddr(p.relay); err == nil {
		return
	}
	switch r := kept(p.relay); {
	case r == nil:
		line("%s: A and AAAA are both the VM's, or there is no AAAA.", p.relay)
	case r.A == "" || r.AAAA == "":
		line("%s: the VM keeps the record of its one address right. There must be no other.", p.relay)
	default:
		line("%s: the VM keeps its records right.", p.relay)
	}
}

// ownFiles are what a home needs that runs this binary, by their names.
func (p *setupPlan) ownFiles() (names []string) {
	for _, file := range p.files {
		if name := filepath.Base(file.path); filepath.Dir(file.path) != p.folder && name != defaultTunnel+".conf" {
			names = append(names, name)
		}
	}
	return names
}

// ports are those that have to be open on the VM.
func (p *setupPlan) ports() (udp, tcp []portRange) {
	udp = append(udp, portRange{int(p.listenPort), int(p.listenPort)})
	if p.scheme == webHTTPS || p.scheme == webHTTP {
		tcp = append(tcp, portRange{80, 80}, portRange{443, 443})
		udp = append(udp, portRange{443, 443})
	}
	for _, s := range p.forwards {
		if s.udp {
			udp = append(udp, s.relay)
		} else {
			tcp = append(tcp, s.relay)
		}
	}
	byPort := func(a, b portRange) int { return a.first - b.first }
	slices.SortFunc(udp, byPort)
	slices.SortFunc(tcp, byPort)
	return udp, tcp
}

func joinPorts(ports []portRange, separator string) string {
	texts := make([]string, len(ports))
	for i, port := range ports {
		texts[i] = port.String()
	}
	return strings.Join(texts, separator)
}

// shellPaths are the files in a folder, each as one word.
func (p *setupPlan) shellPaths(folder string) (paths []string) {
	for _, file := range p.files {
		if filepath.Dir(file.path) == folder {
			paths = append(paths, shellWord(file.path))
		}
	}
	return paths
}
