package lab

import (
	"bytes"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	sample := func(contender string, round int, rate float64) Sample {
		return Sample{Scenario: "s", Variant: "v", Traffic: "to home", Contender: contender, Round: round,
			Metrics: map[string]float64{metricRate: rate, metricRelayCPU: 1}, Series: []float64{rate}}
	}
	then := []Sample{sample("a", 1, 100), sample("a", 2, 120), sample("b", 1, 50), sample("gone", 1, 1), {Scenario: "s", Contender: "c", Round: 1, Err: "a failure"}}
	var file bytes.Buffer
	out, err := NewCSV(&file)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range then {
		if err := out.Write(s); err != nil {
			t.Fatal(err)
		}
	}
	read, err := ReadCSV(&file)
	if err != nil {
		t.Fatal(err)
	}
	if len(read) != len(then) || read[1].Metrics[metricRate] != 120 || read[4].Err != "a failure" {
		t.Errorf("read %+v", read)
	}

	var text strings.Builder
	if err := Compare(&text, read, []Sample{sample("a", 1, 110), sample("a", 2, 120), sample("a", 3, 999), sample("b", 1, 75), sample("new", 1, 1)}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| s, v, to home | a | Mbit/s | 110 (100–120) | 115 (110–120) | 1.05 |  |",
		"| s, v, to home | b | Mbit/s | 50.0 | 75.0 | 1.50 | apart |",
		"Figures: 2; apart: 1.",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

func TestReadCSVRefuses(t *testing.T) {
	head := "scenario,variant,traffic,contender,round,metric,value\n"
	for _, rows := range []string{"s,v,t,c,one,Mbit/s,1\n", "s,v,t,c,1,Mbit/s,much\n", "s,v\n"} {
		if _, err := ReadCSV(strings.NewReader(head + rows)); err == nil {
			t.Errorf("%q is read", rows)
		}
	}
}
