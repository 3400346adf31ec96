// Package lab is the laboratory: what a relay does on a home line behind a
// CGN, measured beside what people have today, on one machine and in one run.
//
// A scenario says what the line is like, what goes wrong with it, what is sent
// over it and what is measured; it is data, in scenarios/. A contender is a way
// to bring ports home: ours, or another's. Each has a world of its own: client,
// relay, router and home in network namespaces, with a line emulator (package
// line) between the router and the rest.
//
// The lab runs each scenario with all contenders in turns, so that a busy
// moment of the machine hurts all alike, and reports the median and the spread.
// The line's random decisions follow from the scenario's seed and the round:
// all contenders meet the same ones, and so does the next run, which can be
// compared with this one.
//
//	tests/lab/run.sh -quick       a look at everything
//	tests/lab/run.sh home-line    one scenario
//	tests/lab/run.sh              all of them
//
// What the lab does not see: how a kernel's work for a contender is billed
// (CPU time is that of processes), and clients that differ from each other.
package lab
