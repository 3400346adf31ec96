// Package wireguard is the Caddy face of Homeward's tunnels.
package wireguard

import "github.com/caddyserver/caddy/v2"

func init() { caddy.RegisterModule(new(App)) }

// App is the app `wireguard`.
type App struct{}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "wireguard", New: func() caddy.Module { return new(App) }}
}

func (*App) Start() error { return nil }
func (*App) Stop() error  { return nil }
