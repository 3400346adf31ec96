package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/homeward-relay/homeward/modules"
)

func main() { caddycmd.Main() }
