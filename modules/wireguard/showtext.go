package wireguard

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// text describes the tunnels as wg(8) does.
func (s shownTunnels) text(now time.Time) string {
	var out strings.Builder
	for i, t := range s {
		if i > 0 {
			out.WriteByte('\n')
		}
		t.write(&out, now)
	}
	return out.String()
}

func (t *tunnelInfo) write(out *strings.Builder, now time.Time) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "  %s: %s\n", name, value)
		}
	}
	fmt.Fprintf(out, "interface: %s\n", t.Name)
	if !t.Up {
		line("state", "down")
		return
	}
	line("public key", t.PublicKey)
	line("addresses", joinPrefixes(t.Addresses))
	line("listening port", fmt.Sprint(t.ListenPort))
	line("mtu", fmt.Sprint(t.MTU))
	line("stack", fmt.Sprintf("%s (%s)", t.Stack, t.StackReason))
	line("congestion control", t.CongestionControl)
	line("up since", ago(t.UpSince, now))
	for _, peer := range t.Peers {
		fmt.Fprintf(out, "\npeer: %s\n", peer.Name)
		line("public key", peer.PublicKey)
		if peer.Endpoint.IsValid() {
			line("endpoint", peer.Endpoint.String())
		} else {
			line("endpoint", "(not known yet)")
		}
		line("allowed ips", joinPrefixes(peer.AllowedIPs))
		line("latest handshake", ago(peer.LatestHandshake, now))
		line("last received", ago(peer.LastReceived, now))
		line("transfer", fmt.Sprintf("%s received, %s sent", size(peer.BytesReceived), size(peer.BytesSent)))
		if peer.PersistentKeepalive > 0 {
			line("persistent keepalive", "every "+span(time.Duration(peer.PersistentKeepalive)*time.Second))
		}
		if peer.PathMTU > 0 {
			line("path mtu", fmt.Sprint(peer.PathMTU))
		}
	}
}

func joinPrefixes(prefixes []netip.Prefix) string {
	texts := make([]string, 0, len(prefixes))
	for _, prefix := range prefixes {
		texts = append(texts, prefix.String())
	}
	return strings.Join(texts, ", ")
}

// ago says how long before now t was. A clock that runs behind that of the
// machine that is asked makes no difference worth a word.
func ago(t, now time.Time) string {
	switch d := now.Sub(t); {
	case t.IsZero():
		return "never"
	case d < time.Second:
		return "now"
	default:
		return span(d) + " ago"
	}
}

// span is a duration in whole units down to the second, as in "1 minute, 12
// seconds". A year has 365 days, as for wg(8).
func span(d time.Duration) string {
	left := int64(d / time.Second)
	var parts []string
	for _, unit := range []struct {
		name    string
		seconds int64
	}{
		{"year", 365 * 86400},
		{"day", 86400},
		{"hour", 3600},
		{"minute", 60},
		{"second", 1},
	} {
		switch n := left / unit.seconds; n {
		case 0:
			continue
		case 1:
			parts = append(parts, "1 "+unit.name)
		default:
			parts = append(parts, fmt.Sprintf("%d %ss", n, unit.name))
		}
		left %= unit.seconds
	}
	return strings.Join(parts, ", ")
}

// size is a number of bytes in the unit that leaves at least one before the
// point.
func size(bytes uint64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value /= 1 << 10; value < 1<<10 {
			break
		}
	}
	return fmt.Sprintf("%.2f %s", value, unit)
}
