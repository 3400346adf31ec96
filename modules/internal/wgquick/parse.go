package wgquick

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// Parse reads a file as wg-quick does, or as Windows and a FRITZ!Box write it:
// with any case, with CRLF and with a byte order mark. Path is only for its
// errors. They say path:line and never what stands there, since that may be a
// key in the wrong place.
func Parse(path string, content []byte) (*File, error) {
	p := &parser{file: &File{Path: path}, section: none}
	text := decode(content)
	if strings.ContainsRune(text, 0) {
		return nil, fmt.Errorf("%s: this is no text file; name the WireGuard configuration file itself, not a picture or an archive of it", path)
	}
	for i, line := range strings.Split(text, "\n") {
		p.line = i + 1
		if err := p.parseLine(line); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, p.line, err)
		}
	}
	p.endSection(len(p.comments))
	if !p.sawInterface {
		return nil, fmt.Errorf("%s: there is no [Interface] section; is it a WireGuard configuration file, and all of it?", path)
	}
	return p.file, p.checkPeers()
}

// decode returns the text in UTF-8 and without a byte order mark. Windows'
// editors can save a file as UTF-16, which other WireGuards cannot read.
func decode(content []byte) string {
	var order func(a, b byte) uint16
	switch {
	case bytes.HasPrefix(content, []byte{0xef, 0xbb, 0xbf}):
		return string(content[3:])
	case bytes.HasPrefix(content, []byte{0xff, 0xfe}):
		order = func(a, b byte) uint16 { return uint16(a) | uint16(b)<<8 }
	case bytes.HasPrefix(content, []byte{0xfe, 0xff}):
		order = func(a, b byte) uint16 { return uint16(a)<<8 | uint16(b) }
	default:
		return string(content)
	}
	var units []uint16
	for pair := range slices.Chunk(content[2:], 2) {
		if len(pair) == 2 {
			units = append(units, order(pair[0], pair[1]))
		}
	}
	return string(utf16.Decode(units))
}

// none, inInterface and inPeer are where a line can stand.
const (
	none = iota
	inInterface
	inPeer
)

type parser struct {
	file         *File
	line         int
	section      int
	sawInterface bool

	// comments are those since the last key or header, and gap is how many of
	// them came before the first empty line: those belong to the section
	// above, the others to the one below if there is one. Negative: no empty
	// line yet.
	comments []string
	gap      int
}

func (p *parser) parseLine(line string) error {
	said, comment, commented := strings.Cut(line, "#")
	said, comment = strings.TrimSpace(said), strings.TrimSpace(comment)
	if said == "" {
		switch {
		case commented:
			p.comments = append(p.comments, comment)
		case p.gap < 0 && p.section != none:
			p.gap = len(p.comments)
		}
		return nil
	}
	parse := p.parseEntry
	if strings.HasPrefix(said, "[") {
		parse = p.parseHeader
	}
	if err := parse(said); err != nil {
		return err
	}
	if commented {
		p.comments = append(p.comments, comment)
		p.endSection(len(p.comments))
	}
	return nil
}

func (p *parser) parseHeader(header string) error {
	p.endSection(max(p.gap, 0))
	switch strings.ToLower(header) {
	case "[interface]":
		p.section, p.sawInterface = inInterface, true
	case "[peer]":
		p.section = inPeer
		p.file.Peers = append(p.file.Peers, Peer{Line: p.line})
	default:
		return errors.New("there is no such section; a file has one [Interface] and any number of [Peer]")
	}
	p.endSection(len(p.comments)) // the comments above
	return nil
}

// endSection gives the first n comments to the section that they belong to,
// and keeps the others for the next one.
func (p *parser) endSection(n int) {
	for _, comment := range p.comments[:n] {
		if p.section != inPeer {
			p.file.Interface.Comments = append(p.file.Interface.Comments, comment)
			continue
		}
		peer := &p.file.Peers[len(p.file.Peers)-1]
		if name := nameIn(comment); name != "" && peer.Name == "" {
			peer.Name = name
			continue
		}
		peer.Comments = append(peer.Comments, comment)
	}
	p.comments = p.comments[n:]
	p.gap = -1
}

// nameComment is how other tools note a peer's name: `# Name = home`,
// `# friendly_name=home` or `#+Name = home`.
var nameComment = regexp.MustCompile(`(?i)^[#+\s]*(?:friendly[ _]?)?name\s*[=:](.*)$`)

func nameIn(comment string) string {
	if found := nameComment.FindStringSubmatch(comment); found != nil {
		return strings.TrimSpace(found[1])
	}
	return ""
}

// field is a key in a section, and what reads its value.
type field[S any] struct {
	key   string
	parse func(section *S, value string) error
}

// Here the manual pages' keys are in their order, which is also Encode's.
var interfaceFields = []field[Interface]{
	{PrivateKey, func(i *Interface, value string) (err error) {
		i.PrivateKey, err = tunnel.ParsePrivateKey(value)
		return err
	}},
	{Address, func(i *Interface, value string) error {
		return parsePrefixes(&i.Addresses, value)
	}},
	{ListenPort, func(i *Interface, value string) error {
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return errors.New("not a UDP port; use 1 to 65535, or 0 for any free one")
		}
		i.ListenPort = uint16(port)
		return nil
	}},
	{FwMark, func(i *Interface, value string) error {
		mark, err := strconv.ParseUint(value, base(value), 32)
		if err != nil && !strings.EqualFold(value, "off") {
			return errors.New("not a firewall mark; use off, or a number of 32 bits such as 51820 or 0xca6c")
		}
		i.FwMark = uint32(mark)
		if err != nil {
			i.FwMark = 0
		}
		return nil
	}},
	{MTU, func(i *Interface, value string) error {
		mtu, err := strconv.ParseUint(value, 10, 16)
		if err != nil || mtu == 0 {
			return errors.New("not a number of bytes, such as 1420")
		}
		i.MTU = int(mtu)
		return nil
	}},
	{DNS, func(i *Interface, value string) error {
		i.DNS = append(i.DNS, list(value)...)
		return nil
	}},
	{Table, func(i *Interface, value string) error {
		if len(strings.Fields(value)) != 1 {
			return errors.New("not a routing table; use auto, off, or the number or name of one")
		}
		i.Table = value
		return nil
	}},
	{PreUp, func(i *Interface, value string) error { return addCommand(&i.PreUp, value) }},
	{PostUp, func(i *Interface, value string) error { return addCommand(&i.PostUp, value) }},
	{PreDown, func(i *Interface, value string) error { return addCommand(&i.PreDown, value) }},
	{PostDown, func(i *Interface, value string) error { return addCommand(&i.PostDown, value) }},
	{SaveConfig, func(i *Interface, value string) error {
		switch i.SaveConfig = strings.EqualFold(value, "true"); {
		case !i.SaveConfig && !strings.EqualFold(value, "false"):
			return errors.New("neither true nor false")
		}
		return nil
	}},
}

var peerFields = []field[Peer]{
	{PublicKey, func(p *Peer, value string) (err error) {
		p.PublicKey, err = tunnel.ParsePublicKey(value)
		return err
	}},
	{PresharedKey, func(p *Peer, value string) (err error) {
		p.PresharedKey, err = tunnel.ParsePresharedKey(value)
		return err
	}},
	{AllowedIPs, func(p *Peer, value string) error {
		from := len(p.AllowedIPs)
		err := parsePrefixes(&p.AllowedIPs, value)
		for i, prefix := range p.AllowedIPs[from:] {
			p.AllowedIPs[from+i] = prefix.Masked()
		}
		return err
	}},
	{Endpoint, func(p *Peer, value string) error {
		p.Endpoint = value
		return checkEndpoint(value)
	}},
	{PersistentKeepalive, func(p *Peer, value string) error {
		seconds, err := strconv.ParseUint(value, 10, 16)
		if err != nil && !strings.EqualFold(value, "off") {
			return errors.New("not a number of seconds; use off, or 1 to 65535")
		}
		if err != nil {
			seconds = 0
		}
		p.PersistentKeepalive = time.Duration(seconds) * time.Second
		return nil
	}},
}

func (p *parser) parseEntry(said string) error {
	written, value, ok := strings.Cut(said, "=")
	if !ok {
		return errors.New("this is no key = value, no [section] and no # comment; was the line broken in two?")
	}
	written = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, written)
	value = strings.TrimSpace(value)

	// What stands between the key above and this one is inside the section.
	p.endSection(len(p.comments))
	switch p.section {
	case inInterface:
		i := &p.file.Interface
		return parseField(i, &i.Entries, p.line, interfaceFields, written, value)
	case inPeer:
		peer := &p.file.Peers[len(p.file.Peers)-1]
		return parseField(peer, &peer.Entries, p.line, peerFields, written, value)
	}
	return errors.New("a key before any section; [Interface] has to stand above this end's keys, and [Peer] above each peer's")
}

func parseField[S any](section *S, entries *Entries, line int, fields []field[S], written, value string) error {
	i := slices.IndexFunc(fields, func(f field[S]) bool { return strings.EqualFold(f.key, written) })
	if i < 0 {
		return unknownKey(written, keys(fields))
	}
	key := fields[i].key
	*entries = append(*entries, Entry{key, line})
	if value == "" && !addsUp(key) {
		return fmt.Errorf("%s has no value; give it one, or remove the line", key)
	}
	if err := fields[i].parse(section, value); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// unknownKey is the error for a key that this section does not have. The key as
// it is written may be a piece of a secret, so only known ones are shown.
func unknownKey(written string, has []string) error {
	is := func(key string) bool { return strings.EqualFold(key, written) }
	all := slices.Concat(keys(interfaceFields), keys(peerFields))
	if i := slices.IndexFunc(all, is); i >= 0 {
		return fmt.Errorf("%s belongs into the file's other kind of section; [Interface] is this end and each [Peer] another one", all[i])
	}
	return fmt.Errorf("WireGuard has no such key here; there are %s. A file with others is for a program that is no WireGuard, or the line is mistyped", strings.Join(has, ", "))
}

func keys[S any](fields []field[S]) (keys []string) {
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	return keys
}

// checkPeers makes sure that a peer is told from the others.
func (p *parser) checkPeers() error {
	seen := make(map[tunnel.PublicKey]int)
	for _, peer := range p.file.Peers {
		line := peer.Entries.Line(PublicKey)
		if line == 0 {
			return fmt.Errorf("%s:%d: this [Peer] has no PublicKey; it is what `wg pubkey` or `caddy wireguard pubkey` makes of that peer's private key", p.file.Path, peer.Line)
		}
		if other, ok := seen[peer.PublicKey]; ok {
			return fmt.Errorf("%s:%d: the [Peer] above with the PublicKey in line %d is the same one; WireGuard knows a peer by its key, so put both into one section", p.file.Path, line, other)
		}
		seen[peer.PublicKey] = line
	}
	return nil
}

// list parts what commas or spaces part.
func list(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
}

func parsePrefixes(prefixes *[]netip.Prefix, value string) error {
	for _, text := range list(value) {
		// wg takes a sign, as in `wg set`; in a file plus is what there is.
		text = strings.TrimPrefix(text, "+")
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			address, err := netip.ParseAddr(text)
			if err != nil || address.Zone() != "" {
				return errors.New("not a list of addresses with their lengths, such as 10.77.0.2/32, fd77::2/128")
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		if prefix.Addr().Is4In6() {
			return errors.New("there is an IPv4 address in IPv6 form; write it as IPv4")
		}
		*prefixes = append(*prefixes, prefix)
	}
	return nil
}

// hostSyntax is of IP addresses and of names that can be looked up.
var hostSyntax = regexp.MustCompile(`^[A-Za-z0-9._:%-]+$`)

func checkEndpoint(value string) error {
	host, port, err := net.SplitHostPort(value)
	switch {
	case err != nil:
		return errors.New("not host:port, such as vm.example.org:51820 or [2001:db8::1]:51820")
	case !hostSyntax.MatchString(host):
		return errors.New("no host name or IP address stands before the colon")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("no UDP port from 1 to 65535 stands after the colon")
	}
	return nil
}

func addCommand(commands *[]string, value string) error {
	if value != "" {
		*commands = append(*commands, value)
	}
	return nil
}

func base(number string) int {
	if len(number) > 2 && strings.EqualFold(number[:2], "0x") {
		return 0 // by the prefix
	}
	return 10
}
