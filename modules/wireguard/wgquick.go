package wireguard

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/modules/internal/wgquick"
)

// maxWgQuickFile is enough for thousands of peers.
const maxWgQuickFile = 1 << 20

// withFile returns the tunnel as it is together with its wg_quick file, or as
// it is if it has none. The result has the file's secrets in it and must not
// outlive Provision.
func (t *Tunnel) withFile(name string, repl *caddy.Replacer, logger *zap.Logger) (*Tunnel, error) {
	if t == nil || t.WgQuick == "" {
		return t, nil
	}
	fail := func(err error) (*Tunnel, error) {
		return nil, t.Origins.At(fmt.Errorf("tunnel %s: wg_quick: %w", name, err), "wg_quick", originBlock)
	}
	path, err := repl.ReplaceOrErr(t.WgQuick, true, true)
	if err != nil {
		return fail(fmt.Errorf("a placeholder in the path has no value: %w", err))
	}
	file, err := readWgQuick(path)
	if err != nil {
		return fail(err)
	}
	whole, ignored, err := t.supplied(file, repl)
	if err != nil {
		return fail(err)
	}

	level, fields := zap.InfoLevel, []zap.Field{
		zap.String("tunnel", name),
		zap.String("file", path),
		zap.Strings("peers", slices.Sorted(maps.Keys(whole.Peers))),
	}
	if len(ignored) > 0 {
		level, fields = zap.WarnLevel, append(fields, zap.Stringers("ignored", ignored))
	}
	logger.Log(level, "read the wg_quick file", fields...)
	return whole, nil
}

func readWgQuick(path string) (*wgquick.File, error) {
	file, err := openSecretFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the file %s does not exist; name a configuration file of WireGuard's by its whole path", path)
	case err != nil:
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxWgQuickFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the WireGuard configuration: %w", err)
	case len(content) > maxWgQuickFile:
		return nil, fmt.Errorf("the file %s is too large for a WireGuard configuration", path)
	}
	return wgquick.Parse(path, content)
}

// ignoredKey is a key of a wg_quick file that is not followed.
type ignoredKey struct {
	key    string
	lines  []int
	reason string
}

func (k ignoredKey) String() string {
	lines := make([]string, len(k.lines))
	for i, line := range k.lines {
		lines[i] = strconv.Itoa(line)
	}
	noun := "line"
	if len(lines) > 1 {
		noun = "lines"
	}
	return fmt.Sprintf("%s in %s %s: %s", k.key, noun, strings.Join(lines, ", "), k.reason)
}

const noCommands = "commands in the file are never run; the tunnel needs no routes and no rules on this machine"

// reasons are why keys have no equivalent.
var reasons = map[string]string{
	wgquick.FwMark:     "the tunnel changes no routes of this machine, so its own packets need no mark to get around them",
	wgquick.DNS:        "this machine keeps its own resolver; resolvers in the wireguard block names servers to ask through the tunnel for upstreams",
	wgquick.Table:      "the tunnel makes no routes on this machine; a connection finds its peer by allowed_ips",
	wgquick.PreUp:      noCommands,
	wgquick.PostUp:     noCommands,
	wgquick.PreDown:    noCommands,
	wgquick.PostDown:   noCommands,
	wgquick.SaveConfig: "Caddy never writes to the file",
}

// supplied returns a copy of the tunnel that has from a file what it does not
// have itself, and the file's keys that are not followed.
func (t *Tunnel) supplied(file *wgquick.File, repl *caddy.Replacer) (*Tunnel, []ignoredKey, error) {
	s := &supply{file: file, tunnel: new(Tunnel)}
	*s.tunnel = *t
	if s.tunnel.Origins = maps.Clone(t.Origins); s.tunnel.Origins == nil {
		s.tunnel.Origins = make(Origins)
	}
	s.tunnel.Peers = make(map[string]*Peer)
	for name, peer := range t.Peers {
		s.tunnel.Peers[name] = new(Peer)
		if peer != nil {
			*s.tunnel.Peers[name] = *peer
		}
	}
	s.supplyInterface()
	names, err := s.names(repl)
	if err != nil {
		return nil, nil, err
	}
	for i, name := range names {
		s.supplyPeer(name, &file.Peers[i])
	}
	for _, name := range slices.Sorted(maps.Keys(s.tunnel.Peers)) {
		if s.tunnel.Peers[name].PublicKey == "" {
			return nil, nil, fmt.Errorf("peer %s has no public_key, and %s has no peer of that name (it has %s); give it the public_key, or the name that the file has in a comment # Name = … above its [Peer]", name, file.Path, strings.Join(names, ", "))
		}
	}
	return s.tunnel, s.ignored, nil
}

// supply is a tunnel in the making.
type supply struct {
	file    *wgquick.File
	tunnel  *Tunnel
	ignored []ignoredKey
}

// take gives an option what a file has for it, unless the option is given.
func (s *supply) take(entries wgquick.Entries, key, origin, option string, given bool, give func()) {
	line := entries.Line(key)
	switch {
	case line == 0:
	case given:
		s.ignored = append(s.ignored, ignoredKey{key, entries.Lines(key), option + " in the wireguard block counts instead"})
	default:
		give()
		s.tunnel.Origins[origin+option] = fmt.Sprintf("%s:%d", s.file.Path, line)
	}
}

func (s *supply) supplyInterface() {
	t, i := s.tunnel, &s.file.Interface
	take := func(key, option string, given bool, give func()) { s.take(i.Entries, key, "", option, given, give) }
	take(wgquick.PrivateKey, "private_key", t.PrivateKey != "", func() { t.PrivateKey = i.PrivateKey.Base64() })
	take(wgquick.Address, "address", len(t.Address) > 0, func() { t.Address = texts(i.Addresses) })
	take(wgquick.ListenPort, "listen_port", t.ListenPort != 0, func() { t.ListenPort = int(i.ListenPort) })
	if i.MTU != 0 && t.MTU == 0 && (i.MTU < netstack.MinMTU || i.MTU > maxMTU) {
		s.ignored = append(s.ignored, ignoredKey{wgquick.MTU, i.Entries.Lines(wgquick.MTU), fmt.Sprintf("a tunnel carries packets of %d to %d bytes; it is measured what fits", netstack.MinMTU, maxMTU)})
	} else {
		take(wgquick.MTU, "mtu", t.MTU != 0, func() { t.MTU = i.MTU })
	}
	told := make(map[string]bool)
	for _, entry := range i.Entries {
		if reason, ok := reasons[entry.Key]; ok && !told[entry.Key] {
			told[entry.Key] = true
			s.ignored = append(s.ignored, ignoredKey{entry.Key, i.Entries.Lines(entry.Key), reason})
		}
	}
	s.supersede(i.Entries, reasons)
}

// supersede tells of lines that later ones replace, but for keys of which
// something is told already.
func (s *supply) supersede(entries wgquick.Entries, told map[string]string) {
	for _, entry := range entries.Superseded() {
		if _, ok := told[entry.Key]; !ok {
			s.ignored = append(s.ignored, ignoredKey{entry.Key, []int{entry.Line}, fmt.Sprintf("line %d gives another value", entries.Line(entry.Key))})
		}
	}
}

func (s *supply) supplyPeer(name string, from *wgquick.Peer) {
	origin := "peer " + name
	peer, ok := s.tunnel.Peers[name]
	if !ok {
		peer = new(Peer)
		s.tunnel.Peers[name] = peer
		s.tunnel.Origins[origin] = fmt.Sprintf("%s:%d", s.file.Path, from.Line)
	}
	take := func(key, option string, given bool, give func()) {
		s.take(from.Entries, key, origin+" ", option, given, give)
	}
	if peer.PublicKey == "" { // given, it is the same
		take(wgquick.PublicKey, "public_key", false, func() { peer.PublicKey = from.PublicKey.String() })
	}
	take(wgquick.PresharedKey, "preshared_key", peer.PresharedKey != "", func() { peer.PresharedKey = from.PresharedKey.Base64() })
	take(wgquick.AllowedIPs, "allowed_ips", len(peer.AllowedIPs) > 0, func() { peer.AllowedIPs = texts(from.AllowedIPs) })
	take(wgquick.Endpoint, "endpoint", peer.Endpoint != "", func() { peer.Endpoint = from.Endpoint })
	take(wgquick.PersistentKeepalive, "persistent_keepalive", peer.PersistentKeepalive != 0, func() {
		peer.PersistentKeepalive = caddy.Duration(from.PersistentKeepalive)
	})
	s.supersede(from.Entries, nil)
}

// notInNames are the characters that a peer's name cannot have.
var notInNames = regexp.MustCompile(`[^A-Za-z0-9-]+`)

// names returns how the file's peers are called: as the block's peer with the
// same public key, else as a comment in the file says, else by their number.
func (s *supply) names(repl *caddy.Replacer) ([]string, error) {
	known := make(map[tunnel.PublicKey]string)
	for name, peer := range s.tunnel.Peers {
		if peer.PublicKey == "" {
			continue
		}
		// What is wrong with a key is said where it is parsed.
		if key, err := peer.parsePublicKey(expander{repl: repl}); err == nil {
			known[key] = name
		}
	}
	names := make([]string, len(s.file.Peers))
	taken := make(map[string]bool)
	for i, peer := range s.file.Peers {
		if name, ok := known[peer.PublicKey]; ok {
			names[i] = name
			taken[name] = true
		}
	}
	choose := func(i int, name string) error {
		if peer, ok := s.tunnel.Peers[name]; ok && peer.PublicKey != "" {
			return fmt.Errorf("%s:%d: this peer is called %s, as is one of the wireguard block with another public key; rename one, the file's with a comment # Name = … above its [Peer]", s.file.Path, s.file.Peers[i].Line, name)
		}
		names[i] = name
		taken[name] = true
		return nil
	}
	for i, peer := range s.file.Peers {
		name := strings.Trim(notInNames.ReplaceAllString(peer.Name, "-"), "-")
		if names[i] != "" || !nameSyntax.MatchString(name) || digitsAlone.MatchString(name) || taken[name] {
			continue
		}
		if err := choose(i, name); err != nil {
			return nil, err
		}
	}
	for i := range s.file.Peers {
		if names[i] != "" {
			continue
		}
		name := "peer" + strconv.Itoa(i+1)
		for taken[name] {
			name += "-unnamed"
		}
		if err := choose(i, name); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func texts[S fmt.Stringer](values []S) (texts []string) {
	for _, value := range values {
		texts = append(texts, value.String())
	}
	return texts
}
