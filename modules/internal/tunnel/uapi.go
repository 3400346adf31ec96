package tunnel

import (
	"bufio"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// changes writes what turns the device's configuration from live to next, in
// WireGuard's cross-platform configuration protocol. Only differences are
// sent: an unchanged peer keeps its session, its endpoint and its timers. The
// listen port is left out, because setting it reopens the socket even if it
// is the same.
//
// Endpoints that are names are the keeper's to set, and so are keepalives; see
// keepKeepalives.
func changes(live, next *Config) string {
	var out strings.Builder
	if live == nil {
		live = new(Config)
	}
	if live.PrivateKey != next.PrivateKey {
		fmt.Fprintf(&out, "private_key=%s\n", hexKey(next.PrivateKey))
	}

	wanted := make(map[PublicKey]*Peer)
	for i := range next.Peers {
		wanted[next.Peers[i].PublicKey] = &next.Peers[i]
	}
	had := make(map[PublicKey]*Peer)
	for i := range live.Peers {
		peer := &live.Peers[i]
		had[peer.PublicKey] = peer
		want, stays := wanted[peer.PublicKey]
		if !stays {
			fmt.Fprintf(&out, "public_key=%s\nremove=true\n", hexKey(peer.PublicKey))
			continue
		}
		// What leaves one peer may be what another gets, so all removals
		// come before all additions.
		if gone := without(peer.AllowedIPs, want.AllowedIPs); len(gone) > 0 {
			fmt.Fprintf(&out, "public_key=%s\nupdate_only=true\n", hexKey(peer.PublicKey))
			for _, prefix := range gone {
				fmt.Fprintf(&out, "allowed_ip=-%s\n", prefix)
			}
		}
	}

	for i := range next.Peers {
		peer := &next.Peers[i]
		old, known := had[peer.PublicKey]
		if !known {
			old = new(Peer)
		}
		var lines strings.Builder
		if old.PresharedKey != peer.PresharedKey {
			fmt.Fprintf(&lines, "preshared_key=%s\n", hexKey(peer.PresharedKey))
		}
		for _, prefix := range without(peer.AllowedIPs, old.AllowedIPs) {
			fmt.Fprintf(&lines, "allowed_ip=%s\n", prefix)
		}
		if endpoint, err := netip.ParseAddrPort(peer.Endpoint); err == nil && old.Endpoint != peer.Endpoint {
			fmt.Fprintf(&lines, "endpoint=%s\n", endpoint)
		}
		if known && lines.Len() == 0 {
			continue
		}
		fmt.Fprintf(&out, "public_key=%s\n", hexKey(peer.PublicKey))
		if known {
			out.WriteString("update_only=true\n")
		}
		out.WriteString(lines.String())
	}
	return out.String()
}

// endpointChange points an existing peer at endpoint.
func endpointChange(key PublicKey, endpoint netip.AddrPort) string {
	return fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hexKey(key), endpoint)
}

// keepaliveChange gives an existing peer another keepalive.
func keepaliveChange(key PublicKey, interval time.Duration) string {
	return fmt.Sprintf("public_key=%s\nupdate_only=true\npersistent_keepalive_interval=%d\n", hexKey(key), seconds(interval))
}

// named tells whether an endpoint is a name that has to be resolved.
func named(endpoint string) bool {
	if endpoint == "" {
		return false
	}
	_, err := netip.ParseAddrPort(endpoint)
	return err != nil
}

func seconds(d time.Duration) int { return int(d / time.Second) }

// without returns the prefixes of a that are not in b.
func without(a, b []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(a), func(prefix netip.Prefix) bool {
		return slices.Contains(b, prefix)
	})
}

// PeerStatus is what a live tunnel knows of a peer.
type PeerStatus struct {
	// Name is the peer's name in the configuration.
	Name string

	// PublicKey is the peer's public key.
	PublicKey PublicKey

	// AllowedIPs and PersistentKeepalive are as configured.
	AllowedIPs          []netip.Prefix
	PersistentKeepalive time.Duration

	// Endpoint is where the peer last spoke from, or is spoken to. The zero
	// value means that neither is known yet.
	Endpoint netip.AddrPort

	// LastHandshake is when the current session began. The zero value means
	// that there never was one.
	LastHandshake time.Time

	// LastReceived is when something last came from the peer, to within a
	// second. The zero value means that nothing has, since the tunnel is up.
	LastReceived time.Time

	// Received and Sent count the bytes of encrypted packets, since the
	// tunnel is up.
	Received, Sent uint64

	// PathMTU is the size of the largest inner packet that the path to the
	// peer carries, in bytes, as probes have found it; at most 1420. 0 means
	// that it is not known, as with an MTU that is configured.
	PathMTU int
}

// parseStatus reads a device's answer to the protocol's get operation. The
// keys in it go no further than this function.
func parseStatus(answer string) map[PublicKey]*PeerStatus {
	peers := make(map[PublicKey]*PeerStatus)
	var peer *PeerStatus
	var sec, nsec int64
	lines := bufio.NewScanner(strings.NewReader(answer))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		if key == "public_key" {
			var public PublicKey
			if raw, err := parseHex(value); err == nil {
				public = raw
			}
			peer, sec = &PeerStatus{PublicKey: public}, 0
			peers[public] = peer
			continue
		}
		if peer == nil {
			continue
		}
		switch key {
		case "endpoint":
			peer.Endpoint, _ = netip.ParseAddrPort(value)
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, _ = strconv.ParseInt(value, 10, 64)
			if sec != 0 || nsec != 0 {
				peer.LastHandshake = time.Unix(sec, nsec)
			}
		case "rx_bytes":
			peer.Received, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			peer.Sent, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return peers
}
