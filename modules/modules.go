// Package modules registers every Homeward module with Caddy: it is the
// package that a custom Caddy is built with.
package modules

import (
	// The layer4 app with all its matchers and handlers.
	_ "github.com/mholt/caddy-l4"

	_ "github.com/homeward-relay/homeward/modules/certfile"
	_ "github.com/homeward-relay/homeward/modules/combinedlog"
	_ "github.com/homeward-relay/homeward/modules/congestion"
	_ "github.com/homeward-relay/homeward/modules/ddns"
	_ "github.com/homeward-relay/homeward/modules/duckdns"
	_ "github.com/homeward-relay/homeward/modules/l4wireguard"
	_ "github.com/homeward-relay/homeward/modules/wgtransport"
	_ "github.com/homeward-relay/homeward/modules/wireguard"
)
