#!/usr/bin/env bash
# Runs the laboratory: scenarios with every contender, tables, CSV and plots.
# As root on Linux.
#
#     tests/lab/run.sh -quick                    a look at everything (10 minutes)
#     tests/lab/run.sh                           every scenario (2 hours)
#     tests/lab/run.sh home-line                 one or several
#     tests/lab/run.sh home-line -rounds 3 -contenders homeward,direct
#     tests/lab/run.sh home-line -against samples.csv    and compare with a run
#
# The results are in the folder that LAB_OUT names, or else in one that is
# printed: results.md, samples.csv and *.svg. Samples are written as they come;
# what a run has measured before it is interrupted is there.
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
out=$(cd "$out" && pwd)
# A path that is given is one from here, and tests run elsewhere.
options=()
for option in "$@"; do
	if [[ $option == */* && -e $option ]]; then option=$(realpath "$option"); fi
	options+=("$option")
done
begin=$SECONDS
# Relays run as nobody. Everyone may open it where udev made it.
if [[ -c /dev/net/tun ]]; then chmod 666 /dev/net/tun; fi

{
	echo "## The run"
	echo
	echo "- command: \`tests/lab/run.sh ${scenarios[*]}${*:+ $*}\` at $(git describe --always --dirty 2>/dev/null || echo 'no commit'), $(date -u +%F)"
	echo "- machine: $(nproc) cores, $(sed -nE 's/^model name\s*: //p' /proc/cpuinfo | head -1), $(uname -sr), $(go version | cut -d ' ' -f 3)"
	echo "- host sysctls: rmem_max $(cat /proc/sys/net/core/rmem_max), wmem_max $(cat /proc/sys/net/core/wmem_max)"
	echo
	echo "## The line's calibration"
	echo
	echo "UDP packets at even distances over a line of 15.5 ms; delays are those beyond the line's own."
	echo
	echo "| line | rate | delay | packets |"
	echo "|---|---|---|---|"
} >"$out/results.md"
go test -count=1 -run '^TestCalibration' ./tests/lab/line -calibration "$out/results.md"
echo >>"$out/results.md"
cat "$out/results.md"

# The line's sum is in both: a test that fails is a measurement that could not
# be made, and the others are still worth a table.
status=0
go test -count=1 -timeout 6h -v -run '^TestLab$' ./tests/lab -scenarios "$(IFS=,; echo "${scenarios[*]}")" -out "$out" "${options[@]}" |
	grep --line-buffered -vE '^=== ' || status=$?
cat "$out/report.md" >>"$out/results.md"
rm "$out/report.md"
go -C tests/lab/tools/plot build -o "$out/plot" .
"$out/plot" -out "$out" "$out/samples.csv"
rm "$out/plot"
echo "results, after $((SECONDS - begin)) s: $out"
exit $status
