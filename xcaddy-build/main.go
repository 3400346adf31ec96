// Command xcaddy-build is Caddy with Homeward's modules: what build.sh makes
// with xcaddy, for `go build ./xcaddy-build` and for debuggers. It has the same
// modules in the same versions, and is larger: xcaddy leaves out debug symbols
// and the databases that Caddy's releases leave out, too.
package main

import (
	// Time zones for containers that have none, as in xcaddy's builds.
	_ "time/tzdata"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/homeward-relay/homeward/modules"
)

func main() { caddycmd.Main() }
