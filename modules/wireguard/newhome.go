package wireguard

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/mdp/qrterminal/v3"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/modules/internal/wgquick"
)

// newHome is a home that a relay is to have.
type newHome struct {
	name        string // as the relay calls it
	endpoint    string // where it calls the relay, as host:port
	transparent bool
	key         tunnel.PrivateKey

	box  netip.Prefix // a FRITZ!Box's own address in its network; invalid: it is none
	host netip.Addr   // of the machine behind it that has the services
}

// join makes the home's keys and its peer in the relay's tunnel, with the next free
// addresses there.
func (h *newHome) join(relay *tunnel.Config) (*tunnel.Config, error) {
	h.key = tunnel.NewPrivateKey()
	peer := tunnel.Peer{Name: h.name, PublicKey: h.key.Public(), PresharedKey: tunnel.NewPresharedKey()}
	if h.box.IsValid() {
		peer.AllowedIPs = []netip.Prefix{h.box.Masked()}
		peer.Hosts = []netip.Addr{h.host}
	} else {
		var taken []netip.Prefix
		for _, other := range relay.Peers {
			taken = append(taken, other.AllowedIPs...)
		}
		for _, own := range relay.Addresses {
			if own.IsSingleIP() {
				continue
			}
			address, err := freeAddress(own, taken)
			if err != nil {
				return nil, err
			}
			peer.AllowedIPs = append(peer.AllowedIPs, netip.PrefixFrom(address, address.BitLen()))
		}
	}
	with := *relay
	with.Peers = append(slices.Clone(relay.Peers), peer)
	if err := with.Check(); err != nil {
		return nil, fmt.Errorf("adding peer %s to the tunnel: %w", h.name, err)
	}
	return &with, nil
}

// freeAddress returns the first address of a network, after this end's own, that is
// in none of the given prefixes.
func freeAddress(own netip.Prefix, taken []netip.Prefix) (netip.Addr, error) {
	const most = 1 << 16
	address := own.Masked().Addr()
	for range most {
		address = address.Next()
		if !own.Contains(address) || own.Addr().Is4() && !own.Contains(address.Next()) {
			break
		}
		if address != own.Addr() && !slices.ContainsFunc(taken, func(prefix netip.Prefix) bool { return prefix.Contains(address) }) {
			return address, nil
		}
	}
	for _, prefix := range taken {
		if prefix.Bits() <= own.Bits() && prefix.Overlaps(own) {
			return netip.Addr{}, fmt.Errorf("a peer has %s in its allowed_ips, and with it all addresses of the tunnel's network %s; give it only its own", prefix, own.Masked())
		}
	}
	return netip.Addr{}, fmt.Errorf("the tunnel's network %s has no address left for another peer; give it a larger one", own.Masked())
}

// behindFritzBox lets the home be a FRITZ!Box, if its own address is given, and a machine
// behind it.
func (h *newHome) behindFritzBox(box, server string) (err error) {
	switch {
	case box == "" && server == "":
		return nil
	case box == "":
		return errors.New("--server is a machine behind a FRITZ!Box; give --fritzbox too")
	}
	if h.box, err = parseFritzBox(box); err != nil {
		return err
	}
	h.host, err = parseServer(server, h.box)
	return err
}

// file is the configuration of a home that runs another WireGuard.
func (h *newHome) file(relay *tunnel.Config) ([]byte, error) {
	var (
		f   *wgquick.File
		err error
	)
	if h.box.IsValid() {
		f, err = wgquick.FritzBoxFile(relay, h.name, h.home(), h.box)
	} else {
		f, err = wgquick.HomeFile(relay, h.name, h.home())
	}
	if err != nil {
		return nil, fmt.Errorf("planning the tunnel of %s: %w", h.name, err)
	}
	return f.Encode()
}

// tunnel is that of a home that runs this binary.
func (h *newHome) tunnel(relay *tunnel.Config) (*tunnel.Config, error) {
	config, err := wgquick.HomeConfig(relay, h.name, h.home())
	if err != nil {
		return nil, fmt.Errorf("planning the tunnel of %s: %w", h.name, err)
	}
	return config, nil
}

func (h *newHome) home() wgquick.Home {
	return wgquick.Home{PrivateKey: h.key, Endpoint: h.endpoint, Transparent: h.transparent}
}

// files are what a home gets: the configuration for another WireGuard and, unless that
// is a FRITZ!Box, the Caddyfile that is made of a tunnel's block, and its keys.
func (h *newHome) files(relay *tunnel.Config, folder, homeFolder string, caddyfile func(block string) ([]byte, error)) ([]newFile, error) {
	content, err := h.file(relay)
	if err != nil {
		return nil, err
	}
	if h.box.IsValid() {
		return []newFile{{path: filepath.Join(folder, "fritzbox.conf"), mode: 0o600, content: content}}, nil
	}
	config, err := h.tunnel(relay)
	if err != nil {
		return nil, err
	}
	t, err := asTunnel(config)
	if err != nil {
		return nil, err
	}
	keys := t.moveKeys(defaultTunnel, homeFolder)
	text, err := caddyfile(t.MarshalCaddyfile(defaultTunnel, nil))
	if err != nil {
		return nil, err
	}
	return slices.Concat([]newFile{
		{path: filepath.Join(folder, defaultTunnel+".conf"), mode: 0o600, content: content},
		{path: filepath.Join(folder, "Caddyfile"), mode: 0o640, content: text},
	}, keyFiles(keys, folder, nil)), nil
}

// keyFiles are the files with keys, in a folder if they are not to be where they belong.
func keyFiles(keys []keyFile, folder string, owner *owner) (files []newFile) {
	for _, key := range keys {
		path := key.path
		if folder != "" {
			path = filepath.Join(folder, filepath.Base(path))
		}
		files = append(files, newFile{path: path, mode: 0o600, content: []byte(key.base64 + "\n"), owner: owner})
	}
	return files
}

// asTunnel returns the tunnel that is configured in the way that config says, with the
// keys themselves in it.
func asTunnel(config *tunnel.Config) (*Tunnel, error) {
	content, err := wgquick.FromConfig(config).Encode()
	if err != nil {
		return nil, err
	}
	file, err := wgquick.Parse("", content)
	if err != nil {
		return nil, err
	}
	t, _, err := new(Tunnel).supplied(file, caddy.NewReplacer())
	if err != nil {
		return nil, err
	}
	for _, peer := range config.Peers {
		for _, host := range peer.Hosts {
			if !slices.ContainsFunc(peer.AllowedIPs, func(prefix netip.Prefix) bool { return prefix.IsSingleIP() && prefix.Addr() == host }) {
				t.Peers[peer.Name].Host = append(t.Peers[peer.Name].Host, host.String())
			}
		}
	}
	return t, nil
}

// endpointAt joins where a relay is and its port.
func endpointAt(relay string, port uint16) string {
	return net.JoinHostPort(relay, strconv.Itoa(int(port)))
}

// parseFritzBox reads a FRITZ!Box's own address in its network.
func parseFritzBox(text string) (netip.Prefix, error) {
	box, err := netip.ParsePrefix(text)
	if err != nil || !box.Addr().Is4() || !box.Addr().IsPrivate() || box.IsSingleIP() {
		return netip.Prefix{}, fmt.Errorf("%q is not a FRITZ!Box's own address with the length of its network, such as 192.168.178.1/24", text)
	}
	return box, nil
}

// checkBoxEndpoint returns what keeps a FRITZ!Box, if home has one, from calling a relay.
func checkBoxEndpoint(box, relay string) error {
	if _, err := netip.ParseAddr(relay); box == "" || err != nil {
		return nil
	}
	return fmt.Errorf("a FRITZ!Box wants a name for the VM, such as example-vm.duckdns.org, in place of %s (--relay)", relay)
}

// parseServer reads the address of a machine in a FRITZ!Box's network.
func parseServer(text string, box netip.Prefix) (netip.Addr, error) {
	host, err := netip.ParseAddr(text)
	if err != nil || !box.Contains(host) || host == box.Addr() {
		return netip.Addr{}, fmt.Errorf("%q is not the address of a machine in %s (--server) that has the services, such as 192.168.178.20", text, box.Masked())
	}
	return host, nil
}

// showQR shows the home's configuration as a QR code, as WireGuard's apps read it.
func (h *newHome) showQR(w io.Writer, relay *tunnel.Config) error {
	content, err := h.file(relay)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "\nThe configuration of %s, for a WireGuard app:\n\n", h.name); err != nil {
		return err
	}
	qrterminal.GenerateHalfBlock(string(content), qrterminal.L, w)
	return nil
}
