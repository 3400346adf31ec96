package wgquick

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// keepalive keeps a NAT's mapping open that lives for half a minute, which is
// the shortest that is usual.
const keepalive = 25 * time.Second

// CheckFritzBox returns what keeps a FRITZ!Box from importing the file as the
// connection to a relay, all of it joined; nil if nothing does. It is strict:
// what is not known to be imported is refused.
func (f *File) CheckFritzBox() error {
	var errs []error
	refuse := func(line int, format string, args ...any) {
		at := cmp.Or(f.Path, "FRITZ!Box file")
		if line > 0 {
			at = fmt.Sprintf("%s:%d", f.Path, line)
		}
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{at}, args...)...))
	}

	i := &f.Interface
	for _, entry := range i.Entries {
		if !slices.Contains([]string{PrivateKey, Address}, entry.Key) {
			refuse(entry.Line, "a FRITZ!Box imports no %s; remove the line", entry.Key)
		}
	}
	if len(i.Comments) > 0 {
		refuse(0, "the [Interface] section has a comment, which a FRITZ!Box may not import; remove it")
	}
	if i.PrivateKey == [len(i.PrivateKey)]byte{} {
		refuse(0, "there is no PrivateKey; a FRITZ!Box makes none for a connection that it imports")
	}
	var lan netip.Prefix
	switch line := i.Entries.Line(Address); {
	case len(i.Addresses) != 1:
		refuse(line, "there are %d addresses in Address; give one, the FRITZ!Box's own address in its LAN, such as 192.168.178.1/24", len(i.Addresses))
	default:
		lan = i.Addresses[0]
		if problem := notLAN(lan); problem != "" {
			refuse(line, "Address %s %s; give the FRITZ!Box's own address in its LAN with the LAN's length, such as 192.168.178.1/24", lan, problem)
		}
	}

	if len(f.Peers) != 1 {
		refuse(0, "there are %d [Peer] sections; a FRITZ!Box imports one, the relay", len(f.Peers))
	}
	for _, peer := range f.Peers {
		if peer.Name != "" || len(peer.Comments) > 0 {
			refuse(peer.Line, "the [Peer] section has a comment, which a FRITZ!Box may not import; remove it")
		}
		if peer.PresharedKey == [len(peer.PresharedKey)]byte{} {
			refuse(peer.Line, "there is no PresharedKey; make one with `caddy wireguard genpsk` for both ends")
		}
		allowed := peer.AllowedIPs
		switch line := peer.Entries.Line(AllowedIPs); {
		case len(allowed) != 1 || !allowed[0].Addr().Is4() || !allowed[0].IsSingleIP():
			refuse(line, "AllowedIPs must be the relay's tunnel address alone, an IPv4 one such as 10.77.0.1/32")
		case lan.IsValid() && lan.Contains(allowed[0].Addr()):
			refuse(line, "AllowedIPs %s is in the FRITZ!Box's own LAN %s; give the tunnel another network", allowed[0], lan.Masked())
		}
		line := peer.Entries.Line(Endpoint)
		if host, _, err := net.SplitHostPort(peer.Endpoint); err != nil {
			refuse(line, "there is no Endpoint; a FRITZ!Box must know where to call the relay")
		} else if _, err := netip.ParseAddr(host); err == nil {
			refuse(line, "Endpoint is an IP address; a FRITZ!Box wants a name, such as vm.example.org:51820")
		}
		if peer.PersistentKeepalive != keepalive {
			refuse(peer.Entries.Line(PersistentKeepalive), "PersistentKeepalive must be %d, so that the provider's NAT keeps its mapping", keepalive/time.Second)
		}
	}
	return errors.Join(errs...)
}

// notLAN says why a prefix is not a machine's address in a LAN.
func notLAN(prefix netip.Prefix) string {
	address := prefix.Addr()
	switch {
	case !address.Is4():
		return "is IPv6"
	case !address.IsPrivate():
		return "is no private address"
	case prefix.Bits() < 8 || prefix.Bits() > 30:
		return "has no LAN's length"
	case address == prefix.Masked().Addr():
		return "is the network and not an address in it"
	case !prefix.Contains(address.Next()):
		return "is the network's broadcast address"
	}
	return ""
}
