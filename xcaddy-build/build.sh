#!/bin/sh
# Builds Caddy with Homeward's modules, caddy-l4 and the DuckDNS provider, with
# xcaddy, from the exact versions of go.mod and verified by go.sum.
#
#   xcaddy-build/build.sh                            ./caddy, for this machine
#   xcaddy-build/build.sh linux/arm64 linux/arm/7    dist/caddy-linux-arm64, dist/caddy-linux-armv7
#
# Environment: VERBOSE=1 shows what xcaddy prints. GOPROXY and the rest of Go's
# settings are heeded.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd -P)
module=github.com/homeward-relay/homeward
tags=nobadger,nomysql,nopgx # Caddy's own releases leave out these databases too

say() { printf '%s\n' "$@"; }
die() {
	printf 'xcaddy-build: %s\n' "$*" >&2
	exit 1
}

case ${1-} in
-h | --help)
	sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
	exit 0
	;;
esac

# What a build says must come from its arguments and from go.mod alone.
unset GOOS GOARCH GOARM GOAMD64 GOARM64 CADDY_VERSION GOBIN \
	XCADDY_RACE_DETECTOR XCADDY_SKIP_BUILD XCADDY_SKIP_CLEANUP XCADDY_DEBUG \
	XCADDY_GO_BUILD_FLAGS XCADDY_GO_MOD_FLAGS XCADDY_SETCAP XCADDY_WHICH_GO
export GOWORK=off CGO_ENABLED=0 LC_ALL=C

cd "$root"
command -v go >/dev/null 2>&1 ||
	die "there is no Go here. Install it from https://go.dev/dl/ and run this again; the binary needs no Go where it runs."
need=$(sed -n 's/^go //p' go.mod)
toolchain=$(go env GOVERSION 2>/dev/null) || toolchain=
if ! go list -m >/dev/null 2>&1; then
	say "$(go list -m 2>&1 || :)" >&2
	die "this needs Go $need, and here is $(cd / && go version 2>/dev/null | cut -d ' ' -f 3). Install a newer one from https://go.dev/dl/, or let Go fetch it: GOTOOLCHAIN=auto $0 $*"
fi
# xcaddy builds in another folder, which asks for no version of Go: name the
# one that this folder chose.
case $toolchain in
go*) GOTOOLCHAIN=${toolchain%% *} && export GOTOOLCHAIN ;;
esac

for target in "$@"; do
	case $target in
	linux/arm/[567]) ;;
	*/*/*) die "\"$target\" is no target: only linux/arm has variants, and they are 5, 6 and 7" ;;
	*) go tool dist list | grep -qxF -e "$target" ||
		die "\"$target\" is no target: it is os/arch, such as linux/arm64, out of: $(go tool dist list | tr '\n' ' ')" ;;
	esac
done

work=$(mktemp -d "${TMPDIR:-/tmp}/homeward-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# run NAME COMMAND... keeps the output for the case that the command fails.
run() {
	name=$1
	shift
	if [ -n "${VERBOSE-}" ]; then
		"$@" || die "$name failed"
	elif ! "$@" >"$work/log" 2>&1; then
		tail -n 40 "$work/log" >&2
		die "$name failed, see above"
	fi
}

# unfetched says why modules are missing, out of what Go printed.
unfetched() {
	tail -n 20 "$work/log" >&2
	if grep -q 'SECURITY ERROR' "$work/log"; then
		die "a module is not the one that go.sum names, see above. Do not build with it; a proxy (GOPROXY) that is wrong or go.sum that was changed may be why."
	fi
	die "cannot fetch a module. Offline? Then go through a proxy that has it (GOPROXY=…), or build once with a network: after that, none is needed."
}

say "Fetching the modules that go.mod and go.sum name (nothing is fetched twice)"
fetch() { go mod download && go -C xcaddy-build/tools mod download; }
fetch >"$work/log" 2>&1 || unfetched
run "building xcaddy" go -C xcaddy-build/tools build -trimpath -o "$work/xcaddy" github.com/caddyserver/xcaddy/cmd/xcaddy

# The versions are those of go.mod, which is the only place that has them.
version_of() {
	v=$(go list -m -f '{{.Version}}' "$1")
	[ -n "$v" ] || die "go.mod has no version of $1"
	printf %s "$v"
}
caddy=$(version_of github.com/caddyserver/caddy/v2)
l4=$(version_of github.com/mholt/caddy-l4)

# xcaddy pins modules in a go.mod of its own, step by step, and so looks at
# modules that ours never loads (such as the v1 of what is used as v2). These
# steps fetch them: they name versions, as xcaddy's first steps do, and the rest
# is settled by reading what is imported, not by asking for what is newest. What
# is fetched is verified by go.sum, or else by the checksum database.
prime() {
	rm -rf "$work/prime"
	mkdir "$work/prime" && cd "$work/prime" || return 1
	cat >main.go <<-EOF
		package main

		import (
			_ "github.com/caddyserver/caddy/v2/cmd"
			_ "github.com/caddyserver/caddy/v2/modules/standard"
			_ "$module/modules"
			_ "github.com/mholt/caddy-l4"
		)
	EOF
	go mod init caddy && go mod edit -replace "$module=$root" && cp "$root/go.sum" . &&
		"$1" go get "github.com/caddyserver/caddy/v2@$caddy" &&
		"$1" go get "github.com/mholt/caddy-l4@$l4" "github.com/caddyserver/caddy/v2@$caddy" &&
		go mod edit -require "$module@v0.0.0-00010101000000-000000000000" &&
		"$1" go list -mod=mod -deps .
}

# sealed COMMAND... runs it with nothing but what was fetched and verified.
sealed() {
	env GOPROXY="file://$(go env GOMODCACHE)/cache/download" GOSUMDB=off GONOSUMDB= GONOPROXY= GOPRIVATE= GOFLAGS= "$@"
}
(prime sealed) >"$work/log" 2>&1 || (prime env) >"$work/log" 2>&1 || unfetched

# `caddy version` says which Homeward it has, as far as that is known.
commit=$(git -C "$root" describe --always --dirty --exclude '*' 2>/dev/null) || commit=
custom=$caddy+homeward${commit:+.$commit}

# pinned lists each module that a build for $GOOS/$GOARCH is made of by our
# go.mod, with its hash in go.sum.
pinned() {
	go list -deps -tags "$tags" -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}' ./xcaddy-build >"$work/modules" &&
		awk 'NR == FNR {used[$1, $2] = 1; next} ($1, $2) in used' "$work/modules" go.sum | sort
}

# build OUTPUT builds for $GOOS/$GOARCH. xcaddy runs `go get` in a module of its
# own, which would ask the network for lists of versions, and take the newest of
# what nobody pinned. So it is sealed off: then it needs no checksum database
# either.
build() {
	out=$1
	mkdir -p "$(dirname "$out")"
	run "building $out" sealed \
		XCADDY_GO_BUILD_FLAGS="-trimpath -tags $tags -ldflags '-w -s -X github.com/caddyserver/caddy/v2.CustomVersion=$custom'" \
		XCADDY_PRINT_VERSION=0 \
		"$work/xcaddy" build "$caddy" --output "$work/caddy" \
		--with "$module/modules" --replace "$module=$root" \
		--with "github.com/mholt/caddy-l4@$l4"

	pinned >"$work/pinned" || die "cannot list the modules of $out"
	go version -m "$work/caddy" | awk -v own="$module" '$1 == "dep" && $2 != own {print $2, $3, $4}' | sort >"$work/built"
	comm -13 "$work/pinned" "$work/built" >"$work/strays"
	if [ -s "$work/strays" ] || [ ! -s "$work/built" ]; then
		cat "$work/strays" >&2
		die "$out would have modules other than those of go.mod and go.sum, see above"
	fi
	# A Caddy that is running keeps the old file; this never writes into it.
	cp "$work/caddy" "$out.new" && chmod 755 "$out.new" && mv -f "$out.new" "$out"
	rm -f "$work/caddy"
}

describe() {
	size=$(wc -c <"$1")
	say "  $1   $((size / 1048576)).$((size % 1048576 * 10 / 1048576)) MiB   $2"
}

if [ $# -eq 0 ]; then
	say "Building ./caddy: Caddy $caddy, caddy-l4 $l4 (the first time takes minutes)"
	build caddy
	version=$(./caddy version) || die "./caddy was built and does not run"
	for m in wireguard layer4.handlers.wireguard http.reverse_proxy.transport.wireguard dns.providers.duckdns caddy.logging.encoders.combined; do
		./caddy list-modules | grep -qx "$m" || die "./caddy was built without $m"
	done
	say "" "Built $(go env GOHOSTOS)/$(go env GOHOSTARCH):"
	describe caddy "$version"
	say "
To try it:           xcaddy-build/demo.sh
To use it:           copy this one file to the VM as /usr/local/bin/caddy; nothing else is needed there.
                     xcaddy-build/homeward.service runs it as an unprivileged service.
For other machines:  xcaddy-build/build.sh linux/arm64"
	exit 0
fi

for target in "$@"; do
	GOOS=${target%%/*}
	arch=${target#*/}
	GOARCH=${arch%%/*}
	GOARM=
	case $arch in */*) GOARM=${arch#*/} ;; esac
	out=dist/caddy-$GOOS-$GOARCH${GOARM:+v$GOARM}
	[ "$GOOS" = windows ] && out=$out.exe
	say "Building $out: Caddy $caddy, caddy-l4 $l4 (the first time takes minutes)"
	(
		export GOOS GOARCH
		[ -z "$GOARM" ] || export GOARM
		build "$out"
	)
	describe "$out" "$target" >>"$work/summary"
done
say "" "Built $custom:"
cat "$work/summary"
say "
Next: copy the file to that machine as /usr/local/bin/caddy, such as
  scp $out vm:/tmp/caddy && ssh vm 'sudo install -m 755 /tmp/caddy /usr/local/bin/caddy'
Nothing else is needed there. xcaddy-build/homeward.service runs it as an unprivileged service."
