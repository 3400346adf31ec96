// Package lab is the laboratory: what a relay does on a home line behind a
// CGN, measured beside what people have today, on one machine and in one run.
//
// A scenario says what the line is like, what is sent over it and what is
// measured; it is data, in scenarios/. A contender is a way to bring a port
// home: ours, or another's. The lab runs each scenario with each contender in
// turns, so that a busy moment of the machine hurts all alike, and reports the
// median and the spread.
//
//	tests/lab/run.sh                        every scenario, every contender
//	tests/lab/run.sh -scenarios home-line   one
package lab
