package wireguard

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

const (
	// defaultTunnel is the name of a tunnel that the Caddyfile gives none.
	defaultTunnel = "wg0"

	// defaultListenPort is WireGuard's customary port.
	defaultListenPort = 51820

	// maxMTU is the largest inner packet that wireguard-go carries.
	maxMTU = 65000

	// autoMTU is an MTU that is auto by choice and not by default.
	autoMTU = -1

	// originBlock is a tunnel's own place in its Origins.
	originBlock = "wireguard"

	// maxKeepalive is what the protocol's 16-bit field of seconds holds.
	maxKeepalive = 65535 * time.Second
)

// Tunnel is a WireGuard tunnel of this machine, what `wg` calls an interface.
type Tunnel struct {
	// This end's private key in base64. Required. It should be a placeholder,
	// `{file./path}` or `{env.NAME}`, so that the key itself is not in the
	// configuration, which the admin API shows.
	PrivateKey string `json:"private_key,omitempty"`

	// This end's addresses inside the tunnel, each as address/length; IPv4,
	// IPv6 or both. At least one is required. Without a length an address
	// stands alone.
	Address []string `json:"address,omitempty"`

	// The UDP port for the encrypted packets. Default: 51820 if some peer has
	// no endpoint and so must be able to call, else any free port.
	ListenPort int `json:"listen_port,omitempty"`

	// The size of the largest packet inside the tunnel, in bytes, 1280 to
	// 65000. 0 means auto, which is the default: the tunnel starts with 1280,
	// measures the path to each peer with echo requests (ping) to the addresses
	// that its name stands for, when it comes up, when its endpoint changes and
	// now and then, and takes what all of them carry, at most 1420. While a
	// peer is up that does not answer, it stays at 1280. A number switches all
	// that off, and must fit the path: packets outside of the tunnel, which are
	// larger by 60 bytes over IPv4 and by 80 over IPv6, are never fragmented.
	// -1 means auto as well, and that a number in the wg_quick file does not
	// count.
	MTU int `json:"mtu,omitempty"`

	// DNS servers for upstream names that are no peer's, as address or
	// address:port. They are asked through the tunnel, so they must be in some
	// peer's allowed IPs.
	Resolvers []string `json:"resolvers,omitempty"`

	// The TCP/IP stack inside the tunnel. `kernel` is the kernel's own, in a
	// namespace that the host does not see: Linux only, and only where user
	// namespaces and /dev/net/tun can be had. `gvisor` works everywhere and is
	// slower, much slower on a lossy line. Default: `auto`, which is kernel
	// where it can be had and else gvisor. A reload that changes the stack
	// takes effect when Caddy is restarted, since it would cut the tunnel's
	// connections.
	Stack string `json:"stack,omitempty"`

	// How the kernel's stack sends TCP, by the kernel's own name for it, such
	// as `bbr` or `cubic`. The `gvisor` stack has cubic only, and no choice.
	// Default: bbr where the kernel has it, but for connections whose round
	// trip takes less than a millisecond, else cubic. A reload that changes it
	// governs new connections.
	CongestionControl string `json:"congestion_control,omitempty"`

	// The other ends by name. A name consists of letters, digits and hyphens,
	// not digits alone, and is unique among all tunnels. Upstreams use it as
	// a host.
	Peers map[string]*Peer `json:"peers,omitempty"`

	// A configuration file of wg-quick(8), which supplies what is not given
	// here: the private key, the addresses, the listen port, the MTU and the
	// peers. The path may have placeholders. The file is read whenever the
	// configuration is loaded, so a changed file takes effect with a reload,
	// and what is in it never shows in the configuration.
	//
	// A peer here that has the public key of one in the file is the same peer,
	// and has what the file says of it wherever it does not say it itself. So
	// is one without a public key that has the name of one in the file. A peer
	// of the file's own has the name in a comment `# Name = home` above its
	// section or in it, where every character that a name cannot have becomes
	// a hyphen, else `peer1`, `peer2` and so on by its place in the file.
	//
	// DNS, Table, FwMark and SaveConfig in the file change nothing, and the
	// commands in PreUp, PostUp, PreDown and PostDown are never run. A line in
	// the log names each key that is not followed, and why. Default: no file.
	WgQuick string `json:"wg_quick,omitempty"`

	// Where in a Caddyfile the tunnel and its options stood, for error
	// messages.
	Origins Origins `json:"origins,omitempty"`
}

// parsedTunnel is a Tunnel with its texts understood.
type parsedTunnel struct {
	config    *tunnel.Config
	hosts     map[string][]netip.Addr
	resolvers []netip.AddrPort
}

var (
	nameSyntax  = regexp.MustCompile(`^[A-Za-z0-9-]{1,63}$`)
	digitsAlone = regexp.MustCompile(`^[0-9]+$`)
)

// expander replaces the placeholders in a value. At adapt time there is none,
// because a placeholder's value may be known to another user or on another
// machine only: then values with placeholders pass unread.
type expander struct {
	repl *caddy.Replacer

	// incomplete says that a wg_quick file is still to supply what is missing.
	incomplete bool
}

// skip tells whether value has to be left unread.
func (e expander) skip(value string) bool {
	return e.repl == nil && strings.Contains(value, "{")
}

func (e expander) expand(value string) (string, error) {
	if e.repl == nil {
		return value, nil
	}
	return e.repl.ReplaceOrErr(value, true, true)
}

// parse checks the tunnel and understands its texts. A nil repl leaves values
// with placeholders unread, and what a wg_quick file is to supply missing; with
// a repl, the tunnel must have what the file says (see withFile). Errors carry the Caddyfile's file:line if known.
func (t *Tunnel) parse(name string, repl *caddy.Replacer) (*parsedTunnel, error) {
	if t == nil {
		return nil, fmt.Errorf("tunnel %s is empty; it needs a private_key, an address and peers", name)
	}
	if !nameSyntax.MatchString(name) {
		return nil, t.Origins.At(fmt.Errorf("tunnel name %q: a name consists of letters, digits and hyphens", name), originBlock)
	}
	p := &parsedTunnel{config: new(tunnel.Config), hosts: make(map[string][]netip.Addr)}
	e := expander{repl, repl == nil && t.WgQuick != ""}
	steps := []struct {
		option string
		parse  func() error
	}{
		{"private_key", func() error { return t.parsePrivateKey(e, p) }},
		{"address", func() error { return t.parseAddress(e, p) }},
		{"listen_port", func() error { return t.parseListenPort(p) }},
		{"mtu", func() error { return t.parseMTU(p) }},
		{"stack", func() error { return t.parseStack(p) }},
		{"congestion_control", func() error { return t.parseCongestionControl(p) }},
	}
	for _, step := range steps {
		if err := step.parse(); err != nil {
			return nil, t.Origins.At(fmt.Errorf("tunnel %s: %s: %w", name, step.option, err), step.option, originBlock)
		}
	}
	for _, peerName := range slices.Sorted(maps.Keys(t.Peers)) {
		if option, err := t.Peers[peerName].parse(peerName, e, p); err != nil {
			peer := "peer " + peerName
			return nil, t.Origins.At(fmt.Errorf("tunnel %s: %w", name, err), peer+" "+option, peer)
		}
	}
	if err := checkConflicts(p.config); err != nil {
		at := originBlock
		var conflict *tunnel.ConflictError
		if errors.As(err, &conflict) {
			at = "peer " + conflict.Peer + " " + conflict.Option
		}
		return nil, t.Origins.At(fmt.Errorf("tunnel %s: %w", name, err), at)
	}
	if err := t.parseResolvers(e, p); err != nil {
		return nil, t.Origins.At(fmt.Errorf("tunnel %s: resolvers: %w", name, err), "resolvers")
	}
	return p, nil
}

// checkConflicts is tunnel.Config.Check, also for a configuration whose
// private key is not known.
func checkConflicts(config *tunnel.Config) error {
	if config.PrivateKey != (tunnel.PrivateKey{}) {
		return config.Check()
	}
	known := *config
	known.PrivateKey = tunnel.NewPrivateKey()
	return known.Check()
}

func (t *Tunnel) parsePrivateKey(e expander, p *parsedTunnel) error {
	if e.incomplete && t.PrivateKey == "" {
		return nil
	}
	if t.PrivateKey == "" {
		return errors.New("missing; make a key with `caddy wireguard genkey` in a file that only Caddy's user can read, and name it here as {file./path/to/key}")
	}
	if e.skip(t.PrivateKey) {
		return nil
	}
	text, err := expandSecret(e.repl, t.PrivateKey)
	if err != nil {
		return err
	}
	p.config.PrivateKey, err = tunnel.ParsePrivateKey(text)
	return err
}

func (t *Tunnel) parseAddress(e expander, p *parsedTunnel) error {
	if e.incomplete && len(t.Address) == 0 {
		return nil
	}
	if len(t.Address) == 0 {
		return errors.New("missing; give this end an address inside the tunnel, such as 10.77.0.1/24")
	}
	prefixes, err := parsePrefixes(e, t.Address)
	if err != nil {
		return err
	}
	for i, prefix := range prefixes {
		switch address := prefix.Addr(); {
		case address.IsUnspecified(), address.IsLoopback(), address.IsMulticast():
			return fmt.Errorf("%s cannot be a tunnel's address; use a private one such as 10.77.0.1/24 or fd77::1/64", prefix)
		case slices.Contains(prefixes[:i], prefix):
			return fmt.Errorf("%s is given twice", prefix)
		}
	}
	p.config.Addresses = prefixes
	return nil
}

func (t *Tunnel) parseListenPort(p *parsedTunnel) error {
	switch {
	case t.ListenPort < 0 || t.ListenPort > 65535:
		return fmt.Errorf("%d is no UDP port; use 1 to 65535", t.ListenPort)
	case t.ListenPort > 0:
		p.config.ListenPort = uint16(t.ListenPort)
	default:
		for _, peer := range t.Peers {
			if peer != nil && peer.Endpoint == "" {
				p.config.ListenPort = defaultListenPort
			}
		}
	}
	return nil
}

func (t *Tunnel) parseMTU(p *parsedTunnel) error {
	if t.MTU == autoMTU {
		return nil
	}
	if t.MTU != 0 && (t.MTU < netstack.MinMTU || t.MTU > maxMTU) {
		return fmt.Errorf("%d is out of range; use auto, or %d to %d", t.MTU, netstack.MinMTU, maxMTU)
	}
	p.config.MTU = t.MTU
	return nil
}

func (t *Tunnel) parseResolvers(e expander, p *parsedTunnel) error {
	for _, text := range t.Resolvers {
		if e.skip(text) {
			continue
		}
		text, err := e.expand(text)
		if err != nil {
			return err
		}
		resolver, err := netip.ParseAddrPort(text)
		if err != nil {
			address, err := netip.ParseAddr(text)
			if err != nil {
				return fmt.Errorf("%q is neither an IP address nor address:port", text)
			}
			resolver = netip.AddrPortFrom(address, 53)
		}
		if peer, _ := p.config.PeerFor(resolver.Addr()); peer == nil && e.repl != nil {
			return fmt.Errorf("%s is in no peer's allowed_ips, so it cannot be asked through the tunnel; add it to the peer it belongs to", resolver.Addr())
		}
		p.resolvers = append(p.resolvers, resolver)
	}
	return nil
}

// parsePrefixes reads addresses with or without a length.
func parsePrefixes(e expander, texts []string) (prefixes []netip.Prefix, err error) {
	for _, text := range texts {
		if e.skip(text) {
			continue
		}
		if text, err = e.expand(text); err != nil {
			return nil, err
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			address, err := netip.ParseAddr(text)
			if err != nil || address.Zone() != "" {
				return nil, fmt.Errorf("%q is not an address with a length, such as 10.77.0.2/32 or fd77::2/128", text)
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		if prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is an IPv4 address in IPv6 form; write it as IPv4", text)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}
