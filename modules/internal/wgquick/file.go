// Package wgquick reads and writes the configuration files of wg-quick(8),
// which are those of wg(8) with a few keys more: what kernel WireGuard runs
// from, what the apps import and what a FRITZ!Box gives out and takes in.
package wgquick

import (
	"net/netip"
	"slices"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// The keys of a file, as the manual pages spell them.
const (
	PrivateKey = "PrivateKey"
	Address    = "Address"
	ListenPort = "ListenPort"
	FwMark     = "FwMark"
	MTU        = "MTU"
	DNS        = "DNS"
	Table      = "Table"
	PreUp      = "PreUp"
	PostUp     = "PostUp"
	PreDown    = "PreDown"
	PostDown   = "PostDown"
	SaveConfig = "SaveConfig"

	PublicKey           = "PublicKey"
	PresharedKey        = "PresharedKey"
	AllowedIPs          = "AllowedIPs"
	Endpoint            = "Endpoint"
	PersistentKeepalive = "PersistentKeepalive"
)

// File is a configuration file. Its secrets show only in what Encode returns:
// printed in any other way, a File has none of its keys in it.
type File struct {
	// Path is where the file is, as its errors say it.
	Path string

	Interface Interface
	Peers     []Peer
}

// Interface is what a file says about this end, in its [Interface] section.
type Interface struct {
	// Comments stand above the section's header or in it, each without its #.
	Comments []string

	// Entries are the section's lines in their order. Encode does not need
	// them.
	Entries Entries

	PrivateKey tunnel.PrivateKey // zero: not given
	Addresses  []netip.Prefix
	ListenPort uint16 // 0: any free one
	FwMark     uint32 // 0: off
	MTU        int    // 0: not given

	// DNS are the addresses of servers, and search domains.
	DNS []string

	// Table is auto, off, or a routing table by its number or name. If empty,
	// it is auto.
	Table string

	// What a shell is to run before and after the interface comes up and goes
	// down, line by line. Nothing of ours ever does.
	PreUp, PostUp, PreDown, PostDown []string

	SaveConfig bool
}

// Peer is what a file says about another end, in a [Peer] section.
type Peer struct {
	// Name is what a comment such as "# Name = home" above or in the section
	// calls the peer, since wg-quick has no key for it. It is as free as a
	// comment is. Empty: it has none.
	Name string

	// Line is where the section's header stands.
	Line int

	// Comments stand above the section's header or in it, each without its #
	// and without the one that Name is from.
	Comments []string

	// Entries are the section's lines in their order. Encode does not need
	// them.
	Entries Entries

	PublicKey           tunnel.PublicKey
	PresharedKey        tunnel.PresharedKey // zero: none
	AllowedIPs          []netip.Prefix      // without host bits
	Endpoint            string              // host:port; empty: none
	PersistentKeepalive time.Duration       // 0: off
}

// Entry is a line with a key. What it gives the key is not in it, because that
// may be a secret.
type Entry struct {
	Key  string
	Line int
}

// Entries are the lines of a section.
type Entries []Entry

// Line returns where a key stands, or 0 if nowhere: the first of the lines that
// add up, the last of those that replace one another.
func (e Entries) Line(key string) (line int) {
	for _, entry := range e {
		if entry.Key != key {
			continue
		}
		if line = entry.Line; addsUp(key) {
			break
		}
	}
	return line
}

// Lines returns every line that a key stands in.
func (e Entries) Lines(key string) (lines []int) {
	for _, entry := range e {
		if entry.Key == key {
			lines = append(lines, entry.Line)
		}
	}
	return lines
}

// Superseded returns the lines that count for nothing, because a later one
// gives the same key another value. That is how wg reads them.
func (e Entries) Superseded() (entries Entries) {
	for _, entry := range e {
		if !addsUp(entry.Key) && e.Line(entry.Key) != entry.Line {
			entries = append(entries, entry)
		}
	}
	return entries
}

// addsUp tells whether a key may be given again, to say more.
func addsUp(key string) bool {
	return slices.Contains([]string{Address, DNS, PreUp, PostUp, PreDown, PostDown, AllowedIPs}, key)
}
