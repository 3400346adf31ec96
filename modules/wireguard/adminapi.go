package wireguard

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI is a module that serves what a person or a program may know of the
// tunnels on Caddy's admin endpoint:
//
//	GET /wireguard/           every tunnel, by name
//	GET /wireguard/<tunnel>   that one
//
// It asks the tunnels of the process and not those of an app, because it is
// provisioned before the apps are, and stays in use when the load of a
// configuration fails.
type adminAPI struct{}

// adminEndpoint is the path that all of the module's endpoints begin with.
const adminEndpoint = "/wireguard/"

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.wireguard",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes returns the module's admin routes.
func (a adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{
		Pattern: adminEndpoint,
		Handler: caddy.AdminHandlerFunc(a.handle),
	}}
}

func (adminAPI) handle(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		return caddy.APIError{
			HTTPStatus: http.StatusMethodNotAllowed,
			Err:        fmt.Errorf("method %s is not allowed here; tunnels can be read with GET, and are changed by loading a configuration", r.Method),
		}
	}
	tunnels := runningTunnels()
	name := strings.TrimPrefix(r.URL.Path, adminEndpoint)
	if name == "" {
		all := make([]tunnelInfo, 0, len(tunnels))
		for _, t := range tunnels {
			all = append(all, describeTunnel(t))
		}
		return writeJSON(w, all)
	}
	for _, t := range tunnels {
		if t.Name() == name {
			return writeJSON(w, describeTunnel(t))
		}
	}
	names := make([]string, 0, len(tunnels))
	for _, t := range tunnels {
		names = append(names, t.Name())
	}
	return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: unknownTunnel(name, names)}
}

// runningTunnels are the tunnels of the running configurations, by name. Some
// may be down.
func runningTunnels() (tunnels []*tunnel.Tunnel) {
	pool.Range(func(_, value any) bool {
		tunnels = append(tunnels, value.(*tunnel.Tunnel))
		return true
	})
	slices.SortFunc(tunnels, func(a, b *tunnel.Tunnel) int { return cmp.Compare(a.Name(), b.Name()) })
	return tunnels
}

// unknownTunnel is the error of asking for a tunnel that is not among those of
// the given names.
func unknownTunnel(name string, names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("there is no tunnel %q, nor any other: the running configuration has no wireguard block", name)
	}
	return fmt.Errorf("there is no tunnel %q; the running configuration has %s", name, strings.Join(names, ", "))
}

func writeJSON(w http.ResponseWriter, answer any) error {
	encoded, err := json.Marshal(answer)
	if err != nil {
		return caddy.APIError{
			HTTPStatus: http.StatusInternalServerError,
			Err:        fmt.Errorf("encoding the answer: %w", err),
		}
	}
	w.Header().Set("Content-Type", "application/json")
	// An error here is the client's going away.
	_, _ = w.Write(append(encoded, '\n'))
	return nil
}

// tunnelInfo is what the admin API says of a tunnel. A tunnel that is down has
// its name only.
type tunnelInfo struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`

	// When the tunnel came up. It survives reloads.
	UpSince time.Time `json:"up_since,omitzero"`

	PublicKey  string         `json:"public_key,omitempty"`
	Addresses  []netip.Prefix `json:"addresses,omitempty"`
	ListenPort uint16         `json:"listen_port,omitempty"`

	// The size of the largest packet inside the tunnel, in bytes.
	MTU int `json:"mtu,omitempty"`

	// The TCP/IP stack, `kernel` or `gvisor`, and in a few words why that one.
	Stack       string `json:"stack,omitempty"`
	StackReason string `json:"stack_reason,omitempty"`

	// How the kernel's stack sends TCP. Not there for other stacks, and while
	// it is whatever this kernel's default is.
	CongestionControl string `json:"congestion_control,omitempty"`

	Peers []peerInfo `json:"peers,omitempty"`
}

// peerInfo is what the admin API says of a peer.
type peerInfo struct {
	Name      string `json:"name"`
	PublicKey string `json:"public_key"`

	// Where the peer last spoke from, or is called. Not there while neither
	// is known.
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`

	AllowedIPs []netip.Prefix `json:"allowed_ips"`

	// When the current session began, and when something last came from the
	// peer, to within a second. Not there if that never was.
	LatestHandshake time.Time `json:"latest_handshake,omitzero"`
	LastReceived    time.Time `json:"last_received,omitzero"`

	// Encrypted packets, since the tunnel is up.
	BytesReceived uint64 `json:"bytes_received"`
	BytesSent     uint64 `json:"bytes_sent"`

	// In seconds, as in WireGuard's own files. Not there if it is off.
	PersistentKeepalive int `json:"persistent_keepalive,omitempty"`

	// The size of the largest inner packet that the path to the peer carries,
	// in bytes. Not there while it is not known, or if the MTU is configured.
	PathMTU int `json:"path_mtu,omitempty"`
}

func describeTunnel(t *tunnel.Tunnel) tunnelInfo {
	state, up := t.State()
	if !up {
		return tunnelInfo{Name: t.Name()}
	}
	info := tunnelInfo{
		Name:              t.Name(),
		Up:                true,
		UpSince:           state.Since.UTC(),
		PublicKey:         state.PublicKey.String(),
		Addresses:         state.Addresses,
		ListenPort:        state.ListenPort,
		MTU:               state.MTU,
		Stack:             state.Stack,
		StackReason:       state.StackReason,
		CongestionControl: state.CongestionControl,
	}
	for _, peer := range state.Peers {
		info.Peers = append(info.Peers, peerInfo{
			Name:                peer.Name,
			PublicKey:           peer.PublicKey.String(),
			Endpoint:            peer.Endpoint,
			AllowedIPs:          append([]netip.Prefix{}, peer.AllowedIPs...),
			LatestHandshake:     peer.LastHandshake.UTC(),
			LastReceived:        peer.LastReceived.UTC(),
			BytesReceived:       peer.Received,
			BytesSent:           peer.Sent,
			PersistentKeepalive: int(peer.PersistentKeepalive / time.Second),
			PathMTU:             peer.PathMTU,
		})
	}
	return info
}

// Interface guard
var _ caddy.AdminRouter = (*adminAPI)(nil)
