#!/usr/bin/env bash
# Runs all of Homeward's tests: those of the packages, then those of the whole
# system with real software in network namespaces.
#
#     tests/run.sh                 everything
#     tests/run.sh -run TestSSH    arguments go to both runs of `go test`
#
# Needs Go. As root on Debian or Ubuntu it installs what else the tests need;
# without root it runs what it can and says what it left out. HOMEWARD_NO_INSTALL=1
# keeps it from installing anything.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${XDG_CACHE_HOME:-$HOME/.cache}/homeward-tests
work=$(mktemp -d)
chmod 755 "$work" # the relay runs as nobody
trap 'rm -rf "$work"' EXIT
begin=$SECONDS
left_out=()

say() { printf '\n== %s\n' "$*"; }

# Debian package of each program that the system tests run.
declare -A package=(
	[ip]=iproute2 [nft]=nftables [wg]=wireguard-tools [setpriv]=util-linux
	[sshd]=openssh-server [ssh]=openssh-client [syslog-ng]=syslog-ng-core
	[apache2]=apache2-bin [curl]=curl [iperf3]=iperf3 [goaccess]=goaccess
	[fail2ban-regex]=fail2ban [tmux]=tmux [ping]=iputils-ping [openssl]=openssl [dig]=bind9-dnsutils [dehydrated]=dehydrated [gcc]="gcc libc6-dev" [systemd-analyze]=systemd
)

PATH=$PATH:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

# missing lists the packages whose program is not there.
missing() {
	local program
	for program in "${!package[@]}"; do
		command -v "$program" >/dev/null || echo "${package[$program]}"
	done | tr ' ' '\n' | sort -u
}

# install_packages installs what is missing, and starts no service for it.
install_packages() {
	local packages policy=/usr/sbin/policy-rc.d made=
	mapfile -t packages < <(missing)
	((${#packages[@]})) || return 0
	say "installing ${packages[*]}"
	if [[ ! -e $policy ]]; then
		# invoke-rc.d asks this file: 101 forbids to start anything.
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		made=1
	fi
	local status=0
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
		-o Dpkg::Use-Pty=0 "${packages[@]}" >"$work/apt.log" 2>&1 || status=$?
	if [[ $made ]]; then rm -f $policy; fi
	if ((status)); then
		tail -n 20 "$work/apt.log"
		return $status
	fi
}

# unpack_rsyslog puts rsyslog beside syslog-ng, since their packages conflict.
unpack_rsyslog() {
	command -v rsyslogd >/dev/null && return 0
	[[ -x $cache/rsyslog/usr/sbin/rsyslogd ]] && return 0
	say "unpacking rsyslog into $cache"
	rm -rf "$cache/rsyslog" "$cache/rsyslog.new"
	mkdir -p "$cache/rsyslog.new"
	(
		cd "$cache/rsyslog.new"
		# Downloaded in a folder that apt's own user may write to.
		mkdir -m 777 "$work/deb"
		cd "$work/deb"
		apt-get download -q rsyslog rsyslog-gnutls libestr0 libfastjson4 liblognorm5
		for deb in *.deb; do dpkg -x "$deb" "$cache/rsyslog.new"; done
	) >"$work/rsyslog.log" 2>&1 || { tail -n 20 "$work/rsyslog.log"; return 1; }
	mv "$cache/rsyslog.new" "$cache/rsyslog"
}

prepare() {
	command -v go >/dev/null || { echo "Go is not installed; see https://go.dev/dl/"; exit 1; }
	((EUID)) && return # the tests that need root say so themselves
	if [[ ! ${HOMEWARD_NO_INSTALL:-} ]] && command -v apt-get >/dev/null; then
		if [[ $(missing) || ! -x $cache/rsyslog/usr/sbin/rsyslogd ]]; then
			apt-get update -q >"$work/apt.log" 2>&1 || tail -n 5 "$work/apt.log"
		fi
		install_packages
		unpack_rsyslog
		# The relay runs as nobody. Everyone may open it where udev made it.
		if [[ -c /dev/net/tun ]]; then chmod 666 /dev/net/tun; fi
		# From here on a test that finds a program missing fails.
		export HOMEWARD_TESTS_STRICT=1
	elif [[ $(missing) ]]; then
		left_out+=("the tests that need $(missing | tr '\n' ' ')")
	fi
}

# choose_race drops the race detector where it cannot be built.
choose_race() {
	race=-race
	if ! command -v gcc >/dev/null; then
		race=
		left_out+=("the race detector: it needs a C compiler (apt-get install gcc libc6-dev)")
	fi
}

# build builds what the system tests run, once for all of them.
build() {
	((EUID)) && return
	say "building the relay, with and without the race detector, and wireguard-go"
	go build $race -o "$work/caddy" ./xcaddy-build
	# The one that users get.
	xcaddy-build/build.sh >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log"; return 1; }
	cp caddy "$work/caddy-fast"
	go build -o "$work/wireguard-go" golang.zx2c4.com/wireguard
	go build -o "$work/stocknetstack" ./tests/stocknetstack
	export HOMEWARD_CADDY=$work/caddy HOMEWARD_CADDY_FAST=$work/caddy-fast
	export HOMEWARD_WIREGUARD_GO=$work/wireguard-go HOMEWARD_STOCKNETSTACK=$work/stocknetstack
	export HOMEWARD_FIGURES=$work/figures
}

# run_tests NAME ARGUMENTS... runs `go test`. It prints a line for each package,
# and all that a failed test has said.
run_tests() {
	local name=$1 log=$work/$1.log status=0
	shift
	go test $race -timeout 60m -v "$@" >"$log" 2>&1 || status=$?
	grep -E '^(ok|FAIL|panic:|# )|^ *--- FAIL' "$log" || true
	if ((status)); then
		say "what failed in $name"
		awk -f tests/failures.awk "$log" >"$work/$name.failures"
		head -n 1000 "$work/$name.failures"
	fi
	while read -r reason; do left_out+=("$reason"); done < <(skipped <"$log")
	return $status
}

# last_words keeps of what failed tests have said the names and, of each, the last
# three things that the test itself has said.
last_words() {
	awk '
		function tell(    i) { for (i = said > 3 ? said - 2 : 1; i <= said; i++) { print words[i] } said = 0 }
		/^(--- |FAIL)/ { tell(); print; own = 0; next }
		/^ +[a-z0-9_]+\.go:[0-9]+: / { if (own = /(_test|testing)\.go:/) { words[++said] = substr($0, 1, 400) }; rows = 1; next }
		own && ++rows <= 6 { words[said] = words[said] "\n" substr($0, 1, 400) }
		END { tell() }
	'
}

# skipped lists why tests were skipped, and which.
skipped() {
	awk '
		match($0, /left out: /) { reason = substr($0, RSTART + RLENGTH); next }
		/^ *--- SKIP: / { names[reason] = names[reason] " " $3 }
		END { for (reason in names) print reason ":" names[reason] }
	' | sort
}

status=0
prepare
choose_race
build
say "package tests"
mapfile -t packages < <(go list ./modules/... ./xcaddy-build/...)
run_tests packages "$@" "${packages[@]}" || status=1
say "system tests"
run_tests system "$@" ./tests/... || status=1

say "summary, after $((SECONDS - begin)) s"
# outcomes WORD counts the tests and their cases that ended so.
outcomes() { cat "$work/packages.log" "$work/system.log" | grep -cE "^\s*--- $1" || true; }
echo "$(outcomes PASS) passed, $(outcomes FAIL) failed, $(outcomes SKIP) skipped (tests and their cases)"
# Once more, for who sees the end of a log alone.
cat "$work"/*.failures 2>/dev/null | last_words || true
for reason in "${left_out[@]}"; do echo "left out: $reason"; done
if [[ -s $work/figures ]]; then cat "$work/figures"; fi
exit $status
