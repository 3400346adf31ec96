// Package tunnel is a live WireGuard tunnel: a wireguard-go device between a
// UDP socket and a TCP/IP stack, the state that its users want of it, and the
// way from the one state to the next without losing what both have.
package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// Config is the wanted state of a tunnel. It is not changed once it has been
// claimed.
type Config struct {
	// PrivateKey is this end's own key.
	PrivateKey PrivateKey

	// Addresses are this end's addresses inside the tunnel, each with the
	// length of its on-link prefix.
	Addresses []netip.Prefix

	// ListenPort is the UDP port for the encrypted packets. 0 takes any free
	// port.
	ListenPort uint16

	// MTU is the size of the largest inner packet, in bytes. 0 means auto: it
	// follows what the paths to the peers carry, from 1280 to 1420.
	MTU int

	// Stack says which TCP/IP stack the tunnel is to have. The zero value is
	// StackAuto.
	Stack StackChoice

	// CongestionControl is how the kernel's stack sends TCP, by the name that
	// the kernel calls it. If empty, it is bbr where the kernel has it, else
	// cubic. gVisor's stack has its own and takes no notice.
	CongestionControl string

	// Store remembers over restarts where peers without an endpoint were last
	// heard. If nil, a restarted tunnel reaches them when they have called.
	Store Store

	// Peers are the other ends. Their names and public keys differ, and no
	// two have the same allowed IP prefix (see Check).
	Peers []Peer
}

// Peer is one other end of a tunnel.
type Peer struct {
	// Name is how logs, errors and upstreams call the peer.
	Name string

	// PublicKey is what WireGuard calls the peer.
	PublicKey PublicKey

	// PresharedKey is the additional secret between the two ends, if any.
	PresharedKey PresharedKey

	// AllowedIPs are the inner addresses that the peer may speak from and is
	// spoken to at.
	AllowedIPs []netip.Prefix

	// Hosts are the addresses that the peer's name stands for. The path to the
	// peer is measured to one of them, or to one of its single-address allowed
	// IPs.
	Hosts []netip.Addr

	// Endpoint is the peer's outer host:port, where host is an IP address or
	// a name. If empty, it is learned from where the peer speaks.
	Endpoint string

	// PersistentKeepalive is the interval at which a packet is sent even when
	// there is nothing to say, which keeps NAT mappings open; in whole
	// seconds. 0 means never.
	PersistentKeepalive time.Duration
}

// ConflictError says that what a peer has cannot be, because something else
// has it already.
type ConflictError struct {
	Peer   string // the peer's name
	Option string // "public_key" or "allowed_ips"
	reason string
}

func (e *ConflictError) Error() string { return e.reason }

// Check returns what makes the configuration impossible, as a ConflictError:
// peers that share a public key or an allowed IP prefix, or that have this
// end's own key.
func (c *Config) Check() error {
	self := c.PrivateKey.Public()
	names := make(map[PublicKey]string)
	owners := make(map[netip.Prefix]string)
	for _, peer := range c.Peers {
		if peer.PublicKey == self {
			return &ConflictError{peer.Name, "public_key", fmt.Sprintf("peer %s has this tunnel's own public key; give it the key that the other end's private key makes", peer.Name)}
		}
		if other, ok := names[peer.PublicKey]; ok {
			return &ConflictError{peer.Name, "public_key", fmt.Sprintf("peers %s and %s have the same public key; WireGuard knows a peer by its key, so each needs its own", other, peer.Name)}
		}
		names[peer.PublicKey] = peer.Name
		for _, prefix := range peer.AllowedIPs {
			prefix = prefix.Masked()
			if other, ok := owners[prefix]; ok && other != peer.Name {
				return &ConflictError{peer.Name, "allowed_ips", fmt.Sprintf("peers %s and %s both have %s in allowed_ips; WireGuard gives a prefix to one peer, so take it from one of them, or put them into two tunnels", other, peer.Name, prefix)}
			}
			owners[prefix] = peer.Name
		}
	}
	return nil
}

// PeerFor returns the peer whose allowed IPs contain address by the longest
// prefix, as WireGuard's cryptokey routing chooses it (whitepaper, section 2),
// and that prefix's length.
func (c *Config) PeerFor(address netip.Addr) (peer *Peer, length int) {
	length = -1
	for i := range c.Peers {
		for _, prefix := range c.Peers[i].AllowedIPs {
			if prefix.Bits() > length && prefix.Contains(address) {
				peer, length = &c.Peers[i], prefix.Bits()
			}
		}
	}
	return peer, length
}

// merge returns the state that serves both configurations: what is live stays
// as it is, what next adds is there too. A value that both have but in which
// they differ stays live's, because taking it away could not be undone without
// a loss. So does an address that belongs to a live peer and that next gives to
// somebody else, be it by a prefix which is longer than the live one.
func merge(live, next *Config) *Config {
	merged := *live
	merged.Addresses = slices.Concat(live.Addresses, slices.DeleteFunc(slices.Clone(next.Addresses), func(prefix netip.Prefix) bool {
		owner, _ := live.PeerFor(prefix.Addr())
		return owner != nil || netstack.HasAddress(live.Addresses, prefix.Addr())
	}))
	merged.Peers = slices.Clone(live.Peers)

	index := make(map[PublicKey]int)
	for i, peer := range live.Peers {
		index[peer.PublicKey] = i
	}
	for _, peer := range next.Peers {
		i, known := index[peer.PublicKey]
		if !known {
			i = len(merged.Peers)
			added := peer
			added.AllowedIPs = nil
			merged.Peers = append(merged.Peers, added)
		}
		has := merged.Peers[i].AllowedIPs
		free := slices.DeleteFunc(without(peer.AllowedIPs, has), func(prefix netip.Prefix) bool {
			owner := live.ownerOf(prefix)
			return owner != nil && owner.PublicKey != peer.PublicKey
		})
		merged.Peers[i].AllowedIPs = slices.Concat(has, free)
	}
	return &merged
}

// ownerOf returns the peer that has the whole of a prefix, or nil. A part of it
// may be another peer's.
func (c *Config) ownerOf(prefix netip.Prefix) (owner *Peer) {
	longest := -1
	for i := range c.Peers {
		for _, allowed := range c.Peers[i].AllowedIPs {
			if bits := allowed.Bits(); bits > longest && bits <= prefix.Bits() && allowed.Contains(prefix.Addr()) {
				owner, longest = &c.Peers[i], bits
			}
		}
	}
	return owner
}

// describe returns the peers' names for a log line.
func (c *Config) describe() string {
	names := make([]string, 0, len(c.Peers))
	for _, peer := range c.Peers {
		names = append(names, peer.Name)
	}
	return strings.Join(names, " ")
}
