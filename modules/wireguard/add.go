package wireguard

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
)

func addCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Prints what a relay's Caddyfile needs for another peer or service",
		Long: `
Reads a relay's Caddyfile and prints what to paste there for another peer, such as
a second home, or another service. The Caddyfile itself is never changed.`,
	}
	cmd.AddCommand(addPeerCommand(), addServiceCommand())
	return cmd
}

// addition is what both commands are told.
type addition struct {
	config, tunnel string
	transparent    bool
}

func (a *addition) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.config, "config", filepath.Join(usualKeyFolder, "Caddyfile"), "The relay's Caddyfile, or its configuration in JSON")
	f.StringVar(&a.tunnel, "tunnel", "", "Name of the tunnel; needed if there are several")
	f.BoolVar(&a.transparent, "transparent", false, "Programs at home see the clients' own addresses; not behind a FRITZ!Box")
}

func addPeerCommand() *cobra.Command {
	a := new(peerAddition)
	cmd := &cobra.Command{
		Use:   "peer <name> --relay <name or address> [--tunnel <name>]",
		Short: "Makes keys and configurations for another home",
		Long: `
Makes the keys of another home and gives it the next free addresses in the tunnel.
Prints the peer for the relay's Caddyfile. What is for home is in a
folder beside the Caddyfile that has the peer's name: the configuration for other
WireGuards, and a Caddyfile with its keys for this binary. Take it home, and then
away from the VM. No file is overwritten.

A phone is such a peer too (--qr shows its configuration to the app). It reaches what
the VM serves inside the tunnel, a site with ` + "`bind wireguard/wg0`" + `, and not the other
peers.

	caddy wireguard add peer cabin --relay example-vm.duckdns.org`,
		Args: cobra.ExactArgs(1),
	}
	a.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&a.relay, "relay", "", "Where home calls the VM: "+whereHomeCalls)
	f.StringVar(&a.fritzBox, "fritzbox", "", "Home's WireGuard is a FRITZ!Box: its own address in its network, such as 192.168.178.1/24")
	f.StringVar(&a.server, "server", "", "The server's address in the FRITZ!Box's network")
	f.StringVar(&a.homeFolder, "home-folder", usualKeyFolder, "Folder of Caddy's configuration at home, where the Caddyfile for home belongs")
	f.StringVar(&a.storage, "storage", "/var/lib/caddy/homeward", "Folder of Caddy's certificates at home")
	f.StringVar(&a.user, "user", "caddy", "Caddy's user on the VM")
	f.BoolVar(&a.qr, "qr", false, "Show the peer's configuration as a QR code, for a WireGuard app: everybody who sees it has its key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true
		a.name = args[0]
		return a.run(cmd.OutOrStdout())
	}
	return cmd
}

// peerAddition is what `add peer` is told.
type peerAddition struct {
	addition
	name, relay, fritzBox, server, homeFolder, storage, user string
	qr                                                       bool
}

func (a *peerAddition) run(w io.Writer) error {
	r, err := readRelay(a.config)
	if err != nil {
		return err
	}
	name, t, err := r.choose(a.tunnel)
	if err != nil {
		return err
	}
	if err := r.checkNewPeer(a.name); err != nil {
		return err
	}
	if a.relay == "" {
		return errors.New("say with --relay where the new peer calls the VM: " + whereHomeCalls)
	}
	if err := checkRelay(a.relay, nil); err != nil {
		return err
	}
	parsed, err := t.parse(name, caddy.NewReplacer())
	if err != nil {
		return err
	}
	if parsed.config.ListenPort == 0 {
		parsed.config.ListenPort = defaultListenPort // of a tunnel with a peer that calls it
	}
	home := newHome{name: a.name, endpoint: endpointAt(a.relay, parsed.config.ListenPort), transparent: a.transparent}
	if err := home.behindFritzBox(a.fritzBox, a.server); err != nil {
		return err
	}
	joined, err := home.join(parsed.config)
	if err != nil {
		return err
	}

	with, err := asTunnel(joined)
	if err != nil {
		return err
	}
	with.Peers = map[string]*Peer{a.name: with.Peers[a.name]}
	folder := filepath.Dir(r.path)
	keys := with.moveKeys(name, folder)[1:] // the tunnel's own key is there
	owner, err := ownerCalled(a.user)
	if err != nil {
		return err
	}
	homeFolder := filepath.Join(folder, a.name)
	files, err := home.files(joined, homeFolder, a.homeFolder, func(block string) ([]byte, error) {
		return executeSetup("home.Caddyfile", setupText{Names: a.name, Folder: a.homeFolder, Storage: caddyfileToken(a.storage), Block: block})
	})
	if err != nil {
		return err
	}
	written := newFiles{
		folders: []newFile{{path: homeFolder, mode: 0o700}},
		files:   append(keyFiles(keys, folder, owner), files...),
	}
	if err := written.write(); err != nil {
		return err
	}

	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("Written:")
	for _, file := range written.files {
		say("  %s", file.path)
	}
	say("\nPaste this into the block `wireguard %s` of %s:\n", name, r.path)
	b.WriteString(with.Peers[a.name].text(a.name))
	say("\nthen: systemctl reload homeward")
	say("Take %s home, then off the VM: it has the keys of %s.", shellWord(homeFolder), a.name)
	if owner == nil {
		say("The file %s belongs to you: it must be %s's.", shellWord(written.files[0].path), a.user)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	if a.qr {
		return home.showQR(w, joined)
	}
	return nil
}

func addServiceCommand() *cobra.Command {
	a := new(addition)
	cmd := &cobra.Command{
		Use:   "service <port>... [--peer <name>]",
		Short: "Prints what sends further ports home",
		Long: `
Prints the layer4 servers that send ports home, for the relay's Caddyfile, and those
for a home that runs this binary. A port is written as in setup: 2022:22, 6514,
19132/udp, 25/proxy_protocol or 7000-7010.

	caddy wireguard add service 2022:22 19132/udp`,
		Args: cobra.MinimumNArgs(1),
	}
	a.flags(cmd)
	peer := cmd.Flags().String("peer", "", "Name of the home; needed if there are several")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true
		return a.addServices(cmd.OutOrStdout(), *peer, args)
	}
	return cmd
}

func (a *addition) addServices(w io.Writer, peer string, texts []string) error {
	var services []service
	for _, text := range texts {
		s, err := parseService(text)
		if err != nil {
			return err
		}
		services = append(services, s)
	}
	r, err := readRelay(a.config)
	if err != nil {
		return err
	}
	if peer, err = r.choosePeer(a.tunnel, peer); err != nil {
		return err
	}
	if err := checkServices(services, r.taken, a.transparent); err != nil {
		return err
	}

	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	show := func(block bool, each func(s service) (serviceText, bool)) {
		lines := new(blockWriter)
		lines.depth = 1
		if block {
			lines.open("layer4", "")
		} else {
			lines.depth++
		}
		for _, s := range services {
			if text, ok := each(s); ok {
				text.write(lines)
			}
		}
		if block {
			lines.close()
		}
		b.WriteString(lines.text.String())
	}
	if r.layer4 {
		say("Paste this into the block `layer4` of %s:\n", r.path)
	} else {
		say("Paste this into the braces at the top of %s:\n", r.path)
	}
	show(!r.layer4, func(s service) (serviceText, bool) { return s.atRelay(peer, a.transparent), true })
	say("\nthen: systemctl reload homeward")
	say("\nWhere %s runs this binary, its Caddyfile needs the same for its side:\n", peer)
	show(true, func(s service) (serviceText, bool) {
		return s.atHome(defaultTunnel), !s.takesMail() || s.proxyProtocol
	})
	var open []string
	for _, s := range services {
		open = append(open, strings.ToUpper(s.network())+" "+s.relay.String())
	}
	say("\nOpen on the VM, at its provider and in its input chain: %s", strings.Join(open, ", "))
	_, err = io.WriteString(w, b.String())
	return err
}

// relayConfig is a relay's configuration, as far as the commands need it.
type relayConfig struct {
	path    string
	tunnels map[string]*Tunnel // with what their wg_quick files supply
	taken   []service          // the ports of the machine that it listens on
	layer4  bool               // it has that app
}

func readRelay(path string) (*relayConfig, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("finding the configuration: %w", err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the relay's configuration: %w; name it with --config, or begin with caddy wireguard setup", err)
	}
	apps, err := adaptApps(path, content)
	if err != nil {
		return nil, err
	}
	if len(apps.Wireguard.Tunnels) == 0 {
		return nil, fmt.Errorf("%s has no tunnel; begin with caddy wireguard setup", path)
	}
	r := &relayConfig{path: path, tunnels: make(map[string]*Tunnel), layer4: len(apps.Layer4.Servers) > 0}
	repl := caddy.NewReplacer()
	for name, t := range apps.Wireguard.Tunnels {
		if r.tunnels[name], err = t.withFile(name, repl, zap.NewNop()); err != nil {
			return nil, err
		}
		if r.tunnels[name] == nil {
			return nil, fmt.Errorf("%s: tunnel %s has nothing in it", path, name)
		}
		port := r.tunnels[name].ListenPort
		if port == 0 {
			port = defaultListenPort
		}
		r.taken = append(r.taken, service{udp: true, relay: portRange{port, port}})
	}
	r.taken = append(r.taken, apps.ports(repl)...)
	return r, nil
}

// choose returns the tunnel called name, or the only one.
func (r *relayConfig) choose(name string) (string, *Tunnel, error) {
	names := slices.Sorted(maps.Keys(r.tunnels))
	switch {
	case name != "" && r.tunnels[name] == nil:
		return "", nil, fmt.Errorf("%s has no tunnel %s; it has %s", r.path, name, strings.Join(names, ", "))
	case name != "":
		return name, r.tunnels[name], nil
	case len(names) > 1:
		return "", nil, fmt.Errorf("%s has several tunnels (%s); choose one with --tunnel", r.path, strings.Join(names, ", "))
	}
	return names[0], r.tunnels[names[0]], nil
}

// choosePeer returns the peer called name, or the only one.
func (r *relayConfig) choosePeer(tunnel, name string) (string, error) {
	var names []string
	for tunnelName, t := range r.tunnels {
		if tunnel == "" || tunnel == tunnelName {
			names = slices.AppendSeq(names, maps.Keys(t.Peers))
		}
	}
	slices.Sort(names)
	switch {
	case name != "" && slices.Contains(names, name):
		return name, nil
	case name != "":
		return "", fmt.Errorf("%s has no peer %s; it has %s", r.path, name, strings.Join(names, ", "))
	case len(names) == 0:
		return "", fmt.Errorf("%s has no peer yet; add one with caddy wireguard add peer", r.path)
	case len(names) > 1:
		return "", fmt.Errorf("%s has several peers (%s); choose one with --peer", r.path, strings.Join(names, ", "))
	}
	return names[0], nil
}

// checkNewPeer returns what keeps a name from being another peer's.
func (r *relayConfig) checkNewPeer(name string) error {
	if !nameSyntax.MatchString(name) || digitsAlone.MatchString(name) {
		return fmt.Errorf("a peer cannot be called %q; a name consists of letters, digits and hyphens, not digits alone", name)
	}
	for tunnel, t := range r.tunnels {
		if t.Peers[name] != nil {
			return fmt.Errorf("tunnel %s has a peer %s already", tunnel, name)
		}
	}
	return nil
}
