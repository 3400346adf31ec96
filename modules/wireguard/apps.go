package wireguard

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// apps is what the commands read of a configuration.
type apps struct {
	Wireguard App                 `json:"wireguard"`
	Layer4    struct{ listening } `json:"layer4"`
	HTTP      struct{ listening } `json:"http"`
}

type listening struct {
	Servers map[string]struct {
		Listen []string `json:"listen"`
	} `json:"servers"`
}

// adaptApps reads a Caddyfile, or a configuration in JSON.
func adaptApps(path string, content []byte) (*apps, error) {
	if filepath.Ext(path) != ".json" {
		adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(content, map[string]any{"filename": path})
		if err != nil {
			return nil, fmt.Errorf("reading the relay's configuration: %w", err)
		}
		content = adapted
	}
	var config struct {
		Apps apps `json:"apps"`
	}
	if err := json.Unmarshal(content, &config); err != nil {
		return nil, fmt.Errorf("reading the relay's configuration: %s: %w", path, err)
	}
	return &config.Apps, nil
}

// ports returns the ports of the machine that servers listen on. Those of the web
// have HTTP/3, and so UDP.
func (a *apps) ports(repl *caddy.Replacer) (ports []service) {
	add := func(listen string, both bool) {
		address, err := caddy.ParseNetworkAddress(repl.ReplaceAll(listen, ""))
		if err != nil || address.StartPort == 0 || !strings.HasPrefix(address.Network, "tcp") && !strings.HasPrefix(address.Network, "udp") {
			return // a tunnel's, or no port at all
		}
		port := portRange{int(address.StartPort), int(address.EndPort)}
		udp := strings.HasPrefix(address.Network, "udp")
		ports = append(ports, service{udp: udp, relay: port})
		if both && !udp {
			ports = append(ports, service{udp: true, relay: port})
		}
	}
	for _, server := range a.Layer4.Servers {
		for _, listen := range server.Listen {
			add(listen, false)
		}
	}
	for _, server := range a.HTTP.Servers {
		for _, listen := range server.Listen {
			add(listen, true)
			if slices.Contains([]string{":443", "tcp/:443"}, listen) {
				add(":80", false) // where Caddy redirects from
			}
		}
	}
	return ports
}
