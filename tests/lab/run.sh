#!/usr/bin/env bash
# Runs the laboratory: scenarios with every contender, tables, CSV and plots.
# As root on Linux.
#
#     tests/lab/run.sh                           every scenario (hours)
#     tests/lab/run.sh home-line                 one or several
#     tests/lab/run.sh home-line -rounds 3 -contenders homeward,direct
#
# The results are in the folder that LAB_OUT names, or else in one that is
# printed: report.md, samples.csv and *.svg.
set -euo pipefail
cd "$(dirname "$0")/../.."

scenarios=()
while (($#)) && [[ $1 != -* ]]; do
	scenarios+=("$1")
	shift
done
((${#scenarios[@]})) || scenarios=(all)
out=${LAB_OUT:-$(mktemp -d)}
mkdir -p "$out"

{
	echo "- command: \`tests/lab/run.sh ${scenarios[*]} $*\` at $(git describe --always --dirty 2>/dev/null || echo 'no commit'), $(date -u +%F)"
	echo "- machine: $(nproc) cores, $(sed -nE 's/^model name\s*: //p' /proc/cpuinfo | head -1), $(uname -sr), $(go version | cut -d ' ' -f 3)"
	echo "- host sysctls: rmem_max $(cat /proc/sys/net/core/rmem_max), wmem_max $(cat /proc/sys/net/core/wmem_max); TCP of all hosts: cubic"
} | tee "$out/machine.md"

go test -count=1 -timeout 6h -v -run '^TestLab$' ./tests/lab -scenarios "$(IFS=,; echo "${scenarios[*]}")" -out "$(cd "$out" && pwd)" "$@" |
	grep --line-buffered -vE '^=== '
go -C tests/lab/tools/plot build -o "$out/plot" .
"$out/plot" -out "$out" "$out/samples.csv"
rm "$out/plot"
echo "results: $out"
