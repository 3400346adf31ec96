#!/bin/sh
# Runs the main job on loopback: a relay and a home, with keys made on the spot,
# a web page and a TCP echo through the tunnel. Builds ./caddy first where it is
# missing or older than its sources. Arguments are those of
# `caddy wireguard demo`.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd -P)
caddy=$root/caddy
newer() {
	find "$root/modules" "$root/go.mod" "$root/xcaddy-build/build.sh" \
		-type f ! -name '*_test.go' ! -path '*/testdata/*' -newer "$caddy" | head -n 1
}
if [ ! -x "$caddy" ] || [ -n "$(newer)" ]; then
	"$root/xcaddy-build/build.sh"
	echo
fi
exec "$caddy" wireguard demo "$@"
