package wireguard

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/homeward-relay/homeward/modules/internal/dnsturns"
)

// whereHomeCalls says what home's endpoint may be. A FRITZ!Box takes no address.
const whereHomeCalls = "its IPv4 address, or a name that has the VM's addresses alone (a FRITZ!Box wants a name)"

// duckDNSToken is the environment variable that the Caddyfiles take the token from.
const duckDNSToken = "DUCKDNS_TOKEN"

func setupCommand() *cobra.Command {
	s := new(setup)
	cmd := &cobra.Command{
		Use:   "setup [--domain <name>]... [--relay <name or address>] [--web <web>] [--service <port>]...",
		Short: "Makes keys and configurations for a relay and its home",
		Long: `
Makes all that a relay and its home need: keys, a Caddyfile for each of them,
a wg-quick file for a home that runs another WireGuard, or the file that a
FRITZ!Box imports. Run it on the VM, as root, since the files must belong to
Caddy's user. What is for home is in the folder home there: take it home, and
then away from the VM.

It asks for what the flags leave open. No file is overwritten.

The VM keeps the records of names at DuckDNS right, if its public addresses are
known: a web site's A is the VM, and its AAAA is home, if home calls the VM by
IPv6. The token is taken from the environment variable DUCKDNS_TOKEN.

--web says what the web server at home speaks:

	https           HTTPS at port 443, with a certificate for its names
	https:8443      the same at another port
	http:8080       plain HTTP, which inside the tunnel is as safe
	passthrough     TLS ends at home: ports 80 and 443 go home as they are
	none            there is none

--service is a port of the VM and one at home, 2022:22, or a port that is the
same at both, 6514. Behind it may be /udp, and /proxy_protocol if the program at
home takes that. A range is 7000-7010.

	caddy wireguard setup --domain example.duckdns.org --relay example-vm.duckdns.org \
		--service 2022:22 --service 6514`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringSliceVar(&s.domains, "domain", nil, "Names of the web site")
	f.StringVar(&s.relay, "relay", "", "Where home calls the VM: "+whereHomeCalls)
	f.StringSliceVar(&s.vmAddresses, "vm-address", nil, "The VM's public addresses, which it keeps in the records at DuckDNS; none: it keeps none (default --relay, if that is one)")
	f.StringVar(&s.web, "web", webHTTPS, "What the web server at home speaks")
	f.StringSliceVar(&s.services, "service", nil, "Ports that go home")
	f.BoolVar(&s.transparent, "transparent", false, "Programs at home see the clients' own addresses; not behind a FRITZ!Box")
	f.StringVar(&s.fritzBox, "fritzbox", "", "Home's WireGuard is a FRITZ!Box: its own address in its network, such as 192.168.178.1/24")
	f.StringVar(&s.server, "server", "", "The server's address in the FRITZ!Box's network")
	f.StringVar(&s.certificate, "certificate", "", "The site's certificates come from this file, and not from an authority by DuckDNS")
	f.StringVar(&s.certificateKey, "certificate-key", "", "The file with the certificate's key")
	f.StringSliceVar(&s.addresses, "address", nil, "The VM's addresses in the tunnel (default 10.77.0.1/24, and fd77::1/64 with --transparent)")
	f.Uint16Var(&s.listenPort, "listen-port", defaultListenPort, "The VM's UDP port for the tunnel")
	f.StringVar(&s.folder, "folder", usualKeyFolder, "Folder of Caddy's configuration on the VM, for the files")
	f.StringVar(&s.homeFolder, "home-folder", usualKeyFolder, "The same at home, where the Caddyfile for home belongs")
	f.StringVar(&s.storage, "storage", "/var/lib/caddy/homeward", "Folder of Caddy's certificates, at both ends")
	f.StringVar(&s.logs, "logs", "/var/log/caddy", "Folder of Caddy's logs, at both ends")
	f.StringVar(&s.user, "user", "caddy", "Caddy's user on the VM")
	f.BoolVar(&s.qr, "qr", false, "Show home's configuration as a QR code, for a WireGuard app: everybody who sees it has home's key")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.SilenceUsage = true // what goes wrong from here on is not the usage
		s.token = os.Getenv(duckDNSToken)
		if stdin := int(os.Stdin.Fd()); cmd.InOrStdin() == os.Stdin && term.IsTerminal(stdin) {
			ask := newQuestions(os.Stdin, cmd.OutOrStdout(), func() (string, error) {
				secret, err := term.ReadPassword(stdin)
				return string(secret), err
			})
			if err := s.ask(ask, cmd.Flags().Changed); err != nil {
				return err
			}
		}
		return s.run(cmd.OutOrStdout())
	}
	return cmd
}

// What a web server at home may be.
const (
	webHTTPS       = "https"
	webHTTP        = "http"
	webPassthrough = "passthrough"
	webNone        = "none"
)

// setup is what the command is told.
type setup struct {
	domains                     []string
	relay                       string
	vmAddresses                 []string
	web                         string
	services                    []string
	transparent                 bool
	fritzBox, server            string
	certificate, certificateKey string
	token                       string
	addresses                   []string
	listenPort                  uint16

	folder, homeFolder, storage, logs, user string
	qr                                      bool
}

// run does what the command is told.
func (s *setup) run(w io.Writer) error {
	p, err := s.plan()
	if err != nil {
		return err
	}
	if err := p.write(); err != nil {
		return err
	}
	if _, err := io.WriteString(w, p.summary()); err != nil {
		return err
	}
	if s.qr {
		return p.home.showQR(w, p.tunnel)
	}
	return nil
}

// hostSyntax is a name of DNS.
var hostSyntax = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

func checkDomain(name string) error {
	if !hostSyntax.MatchString(name) || len(name) > 253 {
		return fmt.Errorf("%q is no domain name, such as example.duckdns.org", name)
	}
	return nil
}

// checkRelay returns what is wrong with where home is to call the relay.
func checkRelay(relay string, domains []string) error {
	if address, err := netip.ParseAddr(relay); err == nil {
		if address.IsUnspecified() || address.IsLoopback() || address.IsMulticast() || address.Zone() != "" {
			return fmt.Errorf("%s is not the address of a VM", relay)
		}
		return nil
	}
	if !hostSyntax.MatchString(relay) {
		return fmt.Errorf("%q is neither an address nor a name; the port is given with --listen-port", relay)
	}
	for _, domain := range domains {
		if sameRecords(domain, relay) {
			return fmt.Errorf("%s has the records of %s, the web site, whose AAAA is home: home would call itself; give the VM's IPv4 address, or another name that has the VM's addresses alone", relay, domain)
		}
	}
	return nil
}

// sameRecords tells whether two names have the same addresses, as all names of one DuckDNS
// domain do.
func sameRecords(a, b string) bool {
	slot := func(name string) string { return cmp.Or(dnsturns.Slot(name), strings.ToLower(name)) }
	return slot(a) == slot(b)
}

// parseWeb reads what the web server at home speaks, and at which port.
func parseWeb(web string) (scheme string, port int, err error) {
	scheme, text, hasPort := strings.Cut(web, ":")
	switch {
	case scheme == webHTTPS:
		port = 443
	case scheme == webHTTP && hasPort:
		port = 80
	case (web == webPassthrough || web == webNone) && !hasPort:
		return web, 0, nil
	default:
		return "", 0, fmt.Errorf("%q is no web server; write https, https:<port>, http:<port>, passthrough or none", web)
	}
	if hasPort {
		ports, err := parsePortRange(text)
		if err != nil || ports.first != ports.last {
			return "", 0, fmt.Errorf("%q has no port from 1 to 65535 behind the colon", web)
		}
		port = ports.first
	}
	return scheme, port, nil
}

// tokenSyntax keeps a token on its line of a file with environment variables.
var tokenSyntax = regexp.MustCompile(`^[A-Za-z0-9-]{36}$`)

func checkToken(token string) error {
	if !tokenSyntax.MatchString(token) {
		return errors.New("this is no token of DuckDNS; it is shown at the top of www.duckdns.org, and has 36 letters, digits and hyphens")
	}
	return nil
}

// certificatesNeedToken tells whether the relay gets its certificates by DuckDNS.
func (s *setup) certificatesNeedToken() bool {
	scheme, _, err := parseWeb(s.web)
	return err == nil && (scheme == webHTTPS || scheme == webHTTP) && s.certificate == ""
}

// absolute makes the folders and files that end up in Caddyfiles absolute.
func (s *setup) absolute() (err error) {
	for _, path := range []*string{&s.folder, &s.homeFolder, &s.storage, &s.logs, &s.certificate, &s.certificateKey} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("finding a folder: %w", err)
		}
	}
	return nil
}
