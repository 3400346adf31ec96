package wireguard

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MarshalCaddyfile returns the wireguard block that UnmarshalCaddyfile reads as
// this tunnel. Comments are lines to stand at the end of the block, or for a
// peer's name at the end of that peer's.
func (t *Tunnel) MarshalCaddyfile(name string, comments map[string][]string) string {
	w := new(blockWriter)
	w.open("wireguard", name)
	w.option("private_key", t.PrivateKey)
	w.option("address", t.Address...)
	w.number("listen_port", t.ListenPort)
	if t.MTU == autoMTU {
		w.option("mtu", "auto")
	} else {
		w.number("mtu", t.MTU)
	}
	w.option("resolvers", t.Resolvers...)
	w.option("stack", t.Stack)
	w.option("congestion_control", t.CongestionControl)
	w.option("wg_quick", t.WgQuick)
	for _, peerName := range slices.Sorted(maps.Keys(t.Peers)) {
		w.open("peer", peerName)
		t.Peers[peerName].write(w)
		w.comments(comments[peerName])
		w.close()
	}
	w.comments(comments[""])
	w.close()
	return w.text.String()
}

// write writes the peer's options.
func (peer *Peer) write(w *blockWriter) {
	w.option("public_key", peer.PublicKey)
	w.option("preshared_key", peer.PresharedKey)
	w.option("allowed_ips", peer.AllowedIPs...)
	w.option("host", peer.Host...)
	w.option("endpoint", peer.Endpoint)
	if peer.PersistentKeepalive != 0 {
		w.option("persistent_keepalive", time.Duration(peer.PersistentKeepalive).String())
	}
}

// text is the peer's block, indented as in the global options.
func (peer *Peer) text(name string) string {
	w := &blockWriter{depth: 2}
	w.open("peer", name)
	peer.write(w)
	w.close()
	return w.text.String()
}

// Text is the layer4 server, indented as in its app.
func (s serviceText) Text() string {
	w := &blockWriter{depth: 2}
	s.write(w)
	return strings.TrimSuffix(w.text.String(), "\n")
}

// write writes the layer4 server.
func (s serviceText) write(w *blockWriter) {
	w.open(s.Listen, "")
	w.open("route", "")
	if len(s.Options) == 0 {
		w.option("wireguard", s.Upstream)
	} else {
		w.open("wireguard", s.Upstream)
		for _, option := range s.Options {
			w.line(option)
		}
		w.close()
	}
	w.close()
	w.close()
}

// blockWriter writes nested blocks. Options without a value are left out.
type blockWriter struct {
	text  strings.Builder
	depth int
}

func (w *blockWriter) line(text string) {
	w.text.WriteString(strings.Repeat("\t", w.depth) + text + "\n")
}

func (w *blockWriter) open(option, name string) {
	if name != "" {
		option += " " + name
	}
	w.line(option + " {")
	w.depth++
}

func (w *blockWriter) close() {
	w.depth--
	w.line("}")
}

func (w *blockWriter) option(option string, values ...string) {
	line := option
	for _, value := range values {
		if value == "" {
			return
		}
		line += " " + caddyfileToken(value)
	}
	if len(values) > 0 {
		w.line(line)
	}
}

func (w *blockWriter) number(option string, value int) {
	if value != 0 {
		w.option(option, strconv.Itoa(value))
	}
}

func (w *blockWriter) comments(comments []string) {
	for _, comment := range comments {
		w.line("# " + comment)
	}
}

// caddyfileToken returns a value in the form in which a Caddyfile has it as one
// word, quoted if need be.
func caddyfileToken(value string) string {
	switch {
	case !strings.ContainsAny(value, " \t\"`#\\\n\r") && value != "{" && value != "}":
		return value
	case !strings.Contains(value, "`"):
		return "`" + value + "`"
	}
	return fmt.Sprintf(`"%s"`, strings.ReplaceAll(value, `"`, `\"`))
}
