// Package modules registers every Homeward module with Caddy: it is the
// package that a custom Caddy is built with.
package modules

import (
	_ "github.com/caddy-dns/duckdns"
	_ "github.com/mholt/caddy-l4"

	_ "github.com/homeward-relay/homeward/modules/wireguard"
)
