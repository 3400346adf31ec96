package wgquick

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Encode returns the file's text, in the form that wg-quick reads. It has the
// secrets in it: write it where nobody else can read it. An error means that a
// command or a comment has something in it that such a file cannot say.
func (f *File) Encode() ([]byte, error) {
	w := new(writer)
	i := &f.Interface
	w.comments(i.Comments)
	w.line("[Interface]")
	if i.PrivateKey != [len(i.PrivateKey)]byte{} {
		w.entry(PrivateKey, i.PrivateKey.Base64())
	}
	w.prefixes(Address, i.Addresses)
	w.number(ListenPort, uint64(i.ListenPort))
	if i.FwMark != 0 {
		w.entry(FwMark, fmt.Sprintf("%#x", i.FwMark))
	}
	w.number(MTU, uint64(i.MTU))
	if len(i.DNS) > 0 {
		w.entry(DNS, strings.Join(i.DNS, ", "))
	}
	if i.Table != "" {
		w.entry(Table, i.Table)
	}
	w.entries(PreUp, i.PreUp)
	w.entries(PostUp, i.PostUp)
	w.entries(PreDown, i.PreDown)
	w.entries(PostDown, i.PostDown)
	if i.SaveConfig {
		w.entry(SaveConfig, "true")
	}
	for _, peer := range f.Peers {
		w.line("")
		if peer.Name != "" {
			w.comments([]string{"Name = " + peer.Name})
		}
		w.comments(peer.Comments)
		w.line("[Peer]")
		w.entry(PublicKey, peer.PublicKey.String())
		if peer.PresharedKey != [len(peer.PresharedKey)]byte{} {
			w.entry(PresharedKey, peer.PresharedKey.Base64())
		}
		w.prefixes(AllowedIPs, peer.AllowedIPs)
		if peer.Endpoint != "" {
			w.entry(Endpoint, peer.Endpoint)
		}
		w.number(PersistentKeepalive, uint64(peer.PersistentKeepalive/time.Second))
	}
	return w.text.Bytes(), w.err
}

// writer keeps the first error.
type writer struct {
	text bytes.Buffer
	err  error
}

func (w *writer) line(line string) {
	w.text.WriteString(line)
	w.text.WriteByte('\n')
}

func (w *writer) comments(comments []string) {
	for _, comment := range comments {
		if strings.ContainsAny(comment, "\n\x00") && w.err == nil {
			w.err = fmt.Errorf("writing a WireGuard configuration: a comment has more than one line")
		}
		w.line(strings.TrimSuffix("# "+comment, " "))
	}
}

func (w *writer) entry(key, value string) {
	if strings.ContainsAny(value, "#\n\x00") && w.err == nil {
		w.err = fmt.Errorf("writing a WireGuard configuration: %s has a # or a line end in it, where its value would be cut off", key)
	}
	w.line(key + " = " + value)
}

func (w *writer) entries(key string, values []string) {
	for _, value := range values {
		w.entry(key, value)
	}
}

// number leaves 0 away, which every key takes for not given.
func (w *writer) number(key string, value uint64) {
	if value != 0 {
		w.entry(key, strconv.FormatUint(value, 10))
	}
}

func (w *writer) prefixes(key string, prefixes []netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	texts := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		texts[i] = prefix.String()
	}
	w.entry(key, strings.Join(texts, ", "))
}
