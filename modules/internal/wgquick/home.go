package wgquick

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

const (
	// relayName is how a home's configuration calls the relay.
	relayName = "relay"

	// transparentTable is the routing table of a home that sees the clients'
	// own addresses. It is WireGuard's port, since nobody else has it.
	transparentTable = "51820"
)

// Home is a home as its relay's configuration does not have it.
type Home struct {
	// PrivateKey is the home's own. The relay has its public half.
	PrivateKey tunnel.PrivateKey

	// Endpoint is where the home calls the relay, as host:port. If empty, the
	// home waits for the relay's call.
	Endpoint string

	// Transparent lets the relay speak with its clients' own addresses.
	Transparent bool
}

// FromConfig returns the file that says what a configuration does, for
// somebody who runs the same end with kernel WireGuard. It leaves out what
// wg-quick has no word for: the stack and its congestion control, and hosts
// that are not a peer's single-address allowed IPs.
func FromConfig(config *tunnel.Config) *File {
	f := &File{Interface: Interface{
		PrivateKey: config.PrivateKey,
		Addresses:  slices.Clone(config.Addresses),
		ListenPort: config.ListenPort,
		MTU:        config.MTU,
	}}
	for _, peer := range config.Peers {
		f.Peers = append(f.Peers, Peer{
			Name:                peer.Name,
			PublicKey:           peer.PublicKey,
			PresharedKey:        peer.PresharedKey,
			AllowedIPs:          slices.Clone(peer.AllowedIPs),
			Endpoint:            peer.Endpoint,
			PersistentKeepalive: peer.PersistentKeepalive,
		})
	}
	return f
}

// HomeConfig returns the other side of a relay's tunnel: the configuration of
// the home that the relay calls by name. The home has the addresses that are
// its own in the relay's configuration and lie in the tunnel's network.
func HomeConfig(relay *tunnel.Config, name string, home Home) (*tunnel.Config, error) {
	peer, err := peerCalled(relay, name, home)
	if err != nil {
		return nil, err
	}
	config := &tunnel.Config{PrivateKey: home.PrivateKey, MTU: relay.MTU}
	if config.Addresses = homeAddresses(relay, peer); len(config.Addresses) == 0 {
		return nil, fmt.Errorf("peer %s has no address in the tunnel's network; add one to its allowed_ips, such as 10.77.0.2/32 where the tunnel's address is 10.77.0.1/24", name)
	}
	if peer.Endpoint != "" {
		if config.ListenPort, err = portOf(peer.Endpoint); err != nil {
			return nil, fmt.Errorf("peer %s: endpoint: %w", name, err)
		}
	}
	other := tunnel.Peer{
		Name:         relayName,
		PublicKey:    relay.PrivateKey.Public(),
		PresharedKey: peer.PresharedKey,
		Hosts:        addressesOf(relay),
		Endpoint:     home.Endpoint,
	}
	for _, host := range other.Hosts {
		other.AllowedIPs = append(other.AllowedIPs, netip.PrefixFrom(host, host.BitLen()))
	}
	if home.Transparent {
		other.AllowedIPs = everybody(config.Addresses)
	}
	if home.Endpoint != "" {
		other.PersistentKeepalive = keepalive
	}
	config.Peers = []tunnel.Peer{other}
	return config, nil
}

// HomeFile is HomeConfig for a home that runs kernel WireGuard by wg-quick.
// With Transparent it has the routes and rules that send home's answers back
// through the tunnel, and leave everything else as it is.
func HomeFile(relay *tunnel.Config, name string, home Home) (*File, error) {
	config, err := HomeConfig(relay, name, home)
	if err != nil {
		return nil, err
	}
	f := FromConfig(config)
	if !home.Transparent {
		return f, nil
	}
	i := &f.Interface
	i.Table = transparentTable
	for _, prefix := range i.Addresses {
		family := "-6"
		if prefix.Addr().Is4() {
			family = "-4"
		}
		rule := fmt.Sprintf("from %s table %s", prefix.Addr(), transparentTable)
		i.PostUp = append(i.PostUp, fmt.Sprintf("ip %s rule add %s", family, rule))
		i.PostDown = append(i.PostDown, fmt.Sprintf("ip %s rule del %s", family, rule))
	}
	return f, nil
}

// FritzBoxFile returns what the FRITZ!Box of the home that the relay calls by
// name imports. Box is its own address in its LAN, with the LAN's length.
func FritzBoxFile(relay *tunnel.Config, name string, home Home, box netip.Prefix) (*File, error) {
	peer, err := peerCalled(relay, name, home)
	if err != nil {
		return nil, err
	}
	if home.Transparent {
		return nil, errors.New("machines behind a FRITZ!Box answer clients by its line and not through the tunnel; transparent cannot be had there")
	}
	addresses := addressesOf(relay)
	i := slices.IndexFunc(addresses, netip.Addr.Is4)
	if i < 0 {
		return nil, errors.New("a FRITZ!Box has IPv4 alone inside its tunnels; give the relay's tunnel an IPv4 address, such as 10.77.0.1/24")
	}
	f := &File{
		Interface: Interface{PrivateKey: home.PrivateKey, Addresses: []netip.Prefix{box}},
		Peers: []Peer{{
			PublicKey:           relay.PrivateKey.Public(),
			PresharedKey:        peer.PresharedKey,
			AllowedIPs:          []netip.Prefix{netip.PrefixFrom(addresses[i], 32)},
			Endpoint:            home.Endpoint,
			PersistentKeepalive: keepalive,
		}},
	}
	if owner, _ := relay.PeerFor(box.Addr()); owner == nil || owner.Name != name {
		return nil, fmt.Errorf("%s is not in the allowed_ips of peer %s, so the relay would drop what the FRITZ!Box sends; add %s there", box.Addr(), name, box.Masked())
	}
	return f, f.CheckFritzBox()
}

func peerCalled(relay *tunnel.Config, name string, home Home) (*tunnel.Peer, error) {
	i := slices.IndexFunc(relay.Peers, func(peer tunnel.Peer) bool { return peer.Name == name })
	switch {
	case i < 0:
		return nil, fmt.Errorf("the tunnel has no peer %s", name)
	case home.PrivateKey.Public() != relay.Peers[i].PublicKey:
		return nil, fmt.Errorf("peer %s has another public key than this home's private key makes; one of them is somebody else's", name)
	}
	return &relay.Peers[i], nil
}

// homeAddresses are those of the peer's own, with the length of the network
// that they share with the relay.
func homeAddresses(relay *tunnel.Config, peer *tunnel.Peer) (addresses []netip.Prefix) {
	for _, allowed := range peer.AllowedIPs {
		if !allowed.IsSingleIP() || netstack.HasAddress(addresses, allowed.Addr()) {
			continue
		}
		bits := -1
		for _, network := range relay.Addresses {
			if network.Contains(allowed.Addr()) && network.Addr() != allowed.Addr() {
				bits = max(bits, network.Bits())
			}
		}
		if bits >= 0 {
			addresses = append(addresses, netip.PrefixFrom(allowed.Addr(), bits))
		}
	}
	return addresses
}

func addressesOf(config *tunnel.Config) (addresses []netip.Addr) {
	for _, prefix := range config.Addresses {
		if !slices.Contains(addresses, prefix.Addr()) {
			addresses = append(addresses, prefix.Addr())
		}
	}
	return addresses
}

// everybody is all addresses of the families that there are.
func everybody(addresses []netip.Prefix) (all []netip.Prefix) {
	for _, family := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if slices.ContainsFunc(addresses, func(prefix netip.Prefix) bool { return prefix.Addr().Is4() == family.Is4() }) {
			all = append(all, netip.PrefixFrom(family, 0))
		}
	}
	return all
}

func portOf(endpoint string) (uint16, error) {
	_, text, err := net.SplitHostPort(endpoint)
	if err != nil {
		return 0, fmt.Errorf("%q is not host:port", endpoint)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q has no UDP port from 1 to 65535 after the colon", endpoint)
	}
	return uint16(port), nil
}
