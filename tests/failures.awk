# Keeps of a log of `go test -v` what belongs to failed tests: the name of each
# with all that it has said, and then what was said outside of tests. Parallel
# tests say it in turn, and the results of subtests come after that of the
# whole.

# Which test says what follows.
/^=== (RUN|PAUSE|CONT|NAME) / {
	test = $3
	if (!(test in said)) { order[++tests] = test; said[test] = 0 }
	next
}
/^ *--- (PASS|SKIP|FAIL): / {
	ended[$3] = 1
	if ($2 == "FAIL:") { failed[$3] = 1 }
	test = ""
	next
}
# The end of a package, whether its tests have run or not.
/^(ok  |\?   )\t/ { forget(); next }
/^FAIL\t/ { tell(); print; forget(); next }
/^(FAIL|PASS)$/ { next }
# Neither race nor panic is always the fault of the test that spoke last.
/^==================$/ { race = !race; say(""); next }
/^(panic|fatal error): / { test = "" }
{ say(race ? "" : test) }
END { tell() }

# say notes a line of a test: of many, the first and the last.
function say(test) {
	line[test, said[test]++ % 200] = $0
	if (said[test] <= 100) { first[test, said[test]] = $0 }
}

function tell(    i) {
	for (i = 1; i <= tests; i++) {
		if (order[i] in failed) { print "--- FAIL: " order[i] } else if (!(order[i] in ended)) { print "--- not ended: " order[i] } else { continue }
		repeat(order[i])
	}
	repeat("")
}

function repeat(test,    i, last) {
	last = said[test]
	for (i = 1; i <= last && i <= 100; i++) { print first[test, i] }
	if (last > 300) { print "    [" last - 300 " lines]" }
	for (i = last > 300 ? last - 200 : 100; i < last; i++) { print line[test, i % 200] }
}

function forget() {
	split("", said); split("", order); split("", ended); split("", failed); split("", line); split("", first)
	tests = 0; test = ""; race = 0
}
