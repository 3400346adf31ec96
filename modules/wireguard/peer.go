package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// Peer is another end of a tunnel.
type Peer struct {
	// The peer's public key in base64. Required.
	PublicKey string `json:"public_key,omitempty"`

	// A secret that both ends share, in base64; it should be a placeholder,
	// as private_key. Default: none.
	PresharedKey string `json:"preshared_key,omitempty"`

	// The addresses inside the tunnel that the peer may speak from and is
	// reached at, as address/length. At least one is required. No two peers of
	// a tunnel have the same.
	AllowedIPs []string `json:"allowed_ips,omitempty"`

	// The addresses that the peer's bare name stands for in upstreams.
	// Default: those of its allowed IPs that are a single address.
	Host []string `json:"host,omitempty"`

	// Where the peer is called, as host:port; host may be a name, whose IPv6
	// addresses come before its IPv4 addresses. Default: learned from where
	// the peer speaks, the normal case for one behind CGN.
	Endpoint string `json:"endpoint,omitempty"`

	// How often to send a packet when there is nothing to say, in whole
	// seconds, which keeps NAT mappings open. Default: never; 25s for an end
	// that is itself behind NAT.
	PersistentKeepalive caddy.Duration `json:"persistent_keepalive,omitempty"`
}

// parse adds the peer to p. With an error it returns the option that is wrong,
// or "" if that is the peer as a whole.
func (peer *Peer) parse(name string, e expander, p *parsedTunnel) (option string, err error) {
	fail := func(option string, err error) (string, error) {
		return option, fmt.Errorf("peer %s: %s: %w", name, option, err)
	}
	switch {
	case !nameSyntax.MatchString(name), digitsAlone.MatchString(name):
		return "", fmt.Errorf("peer name %q: a name consists of letters, digits and hyphens, not of digits alone, so that it is never an IP address or a DNS name", name)
	case peer == nil:
		return "", fmt.Errorf("peer %s is empty; it needs a public_key and allowed_ips", name)
	}

	parsed := tunnel.Peer{Name: name}
	if parsed.PublicKey, err = peer.parsePublicKey(e); err != nil {
		return fail("public_key", err)
	}
	if parsed.PresharedKey, err = peer.parsePresharedKey(e); err != nil {
		return fail("preshared_key", err)
	}
	if len(peer.AllowedIPs) == 0 && !e.incomplete {
		return fail("allowed_ips", errors.New("missing; list the addresses inside the tunnel that this peer has, such as 10.77.0.2/32"))
	}
	if parsed.AllowedIPs, err = parsePrefixes(e, peer.AllowedIPs); err != nil {
		return fail("allowed_ips", err)
	}
	for i, prefix := range parsed.AllowedIPs {
		parsed.AllowedIPs[i] = prefix.Masked()
	}
	if parsed.Endpoint, err = parseEndpoint(e, peer.Endpoint); err != nil {
		return fail("endpoint", err)
	}
	keepalive := time.Duration(peer.PersistentKeepalive)
	if keepalive < 0 || keepalive > maxKeepalive || keepalive%time.Second != 0 {
		return fail("persistent_keepalive", fmt.Errorf("%s is not a whole number of seconds from 0s to %s; write it with its unit, such as 25s", keepalive, maxKeepalive))
	}
	parsed.PersistentKeepalive = keepalive
	hosts, err := peer.parseHost(e, &parsed)
	if err != nil {
		return fail("host", err)
	}
	p.hosts[name] = hosts
	parsed.Hosts = hosts
	p.config.Peers = append(p.config.Peers, parsed)
	return "", nil
}

func (peer *Peer) parsePublicKey(e expander) (key tunnel.PublicKey, err error) {
	if peer.PublicKey == "" && !e.incomplete {
		return key, errors.New("missing; it is what `wg pubkey` or `caddy wireguard pubkey` makes of the peer's private key")
	}
	if peer.PublicKey == "" || e.skip(peer.PublicKey) {
		// A key of its own, so that it does not look like another peer's.
		return tunnel.NewPrivateKey().Public(), nil
	}
	text, err := e.expand(peer.PublicKey)
	if err != nil {
		return key, err
	}
	return tunnel.ParsePublicKey(text)
}

func (peer *Peer) parsePresharedKey(e expander) (key tunnel.PresharedKey, err error) {
	if peer.PresharedKey == "" || e.skip(peer.PresharedKey) {
		return key, nil
	}
	text, err := expandSecret(e.repl, peer.PresharedKey)
	if err != nil {
		return key, err
	}
	return tunnel.ParsePresharedKey(text)
}

// parseHost returns the addresses that the peer's name stands for, which may
// be none: then the name cannot be an upstream.
func (peer *Peer) parseHost(e expander, parsed *tunnel.Peer) (hosts []netip.Addr, err error) {
	if len(peer.Host) == 0 {
		for _, prefix := range parsed.AllowedIPs {
			if prefix.IsSingleIP() {
				hosts = append(hosts, prefix.Addr())
			}
		}
		return hosts, nil
	}
	only := tunnel.Config{Peers: []tunnel.Peer{*parsed}}
	for _, text := range peer.Host {
		if e.skip(text) {
			continue
		}
		if text, err = e.expand(text); err != nil {
			return nil, err
		}
		address, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not an IP address", text)
		}
		unknown := e.incomplete && len(peer.AllowedIPs) == 0 || slices.ContainsFunc(peer.AllowedIPs, e.skip)
		if owner, _ := only.PeerFor(address); owner == nil && !unknown {
			return nil, fmt.Errorf("%s is not in this peer's allowed_ips; add it there", address)
		}
		hosts = append(hosts, address)
	}
	return hosts, nil
}

func parseEndpoint(e expander, text string) (string, error) {
	if text == "" || e.skip(text) {
		return "", nil
	}
	text, err := e.expand(text)
	if err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("%q is not host:port, such as relay.example.org:%d", text, defaultListenPort)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q has no UDP port from 1 to 65535 after the colon", text)
	}
	if host == "" || strings.ContainsAny(host, " /") {
		return "", fmt.Errorf("%q has no host before the colon", text)
	}
	return text, nil
}
