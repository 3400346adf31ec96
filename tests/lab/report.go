package lab

import (
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Spread is the median of several rounds, and how far they lie apart.
type Spread struct {
	Median, Min, Max float64
	N                int
}

func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + sorted[middle]) / 2
	}
	return Spread{Median: median, Min: sorted[0], Max: sorted[len(sorted)-1], N: len(sorted)}
}

func (s Spread) String() string {
	if s.N == 0 {
		return "–"
	}
	if s.N == 1 {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median), number(s.Min), number(s.Max))
}

// number prints three significant digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// shown are the metrics of a table, in its order.
var shown = []string{metricRate, metricSeconds, metricRelayCPU, metricHomeCPU, metricLostDatagrams, metricP50, metricP95, metricMax, metricRequests, metricFailed, metricGap, metricNew, metricOld, metricLost, metricOpen, metricPerConnection, metricRelayRSS, metricDropped, metricHostDropped}

// Table writes a scenario's samples as Markdown: a table for each variant and
// traffic, a row for each contender, median (least–most) of the rounds.
func Table(out io.Writer, scenario *Scenario, entries []*entry, samples []Sample) error {
	var text strings.Builder
	fmt.Fprintf(&text, "## %s: %s\n\n%s\n", scenario.Name, scenario.Title, rounds(scenario.Rounds))
	for _, variant := range scenario.Variants {
		for _, traffic := range scenario.Traffic {
			title := traffic.Name
			if variant.Name != "" {
				title = variant.Name + ", " + traffic.Name
			}
			writeTable(&text, title, entries, slices.DeleteFunc(slices.Clone(samples), func(s Sample) bool {
				return s.Scenario != scenario.Name || s.Variant != variant.Name || s.Traffic != traffic.Name
			}))
		}
	}
	for _, e := range entries {
		if len(e.restarts) > 0 {
			fmt.Fprintf(&text, "\n%s was started anew after these:\n\n", e.contender.Name())
		}
		for _, restart := range e.restarts {
			fmt.Fprintf(&text, "- %s\n", restart)
		}
		e.restarts = nil
	}
	_, err := io.WriteString(out, text.String())
	return err
}

func rounds(n int) string {
	if n < claimRounds {
		return fmt.Sprintf("Rounds: %d, fewer than it takes to claim a ratio.", n)
	}
	return fmt.Sprintf("Rounds: %d.", n)
}

// claimRounds are enough to say that one is so many times as fast as another.
const claimRounds = 7

func writeTable(text *strings.Builder, title string, entries []*entry, samples []Sample) {
	values := make(map[string]map[string][]float64) // contender, metric
	failures, made := make(map[string]int), make(map[string]int)
	inability := make(map[string]string)
	present := make(map[string]bool)
	for _, s := range samples {
		made[s.Contender]++
		if s.Unable != "" {
			inability[s.Contender] = s.Unable
			continue
		}
		if s.Err != "" {
			failures[s.Contender]++
			continue
		}
		if values[s.Contender] == nil {
			values[s.Contender] = make(map[string][]float64)
		}
		for metric, value := range s.Metrics {
			values[s.Contender][metric] = append(values[s.Contender][metric], value)
			present[metric] = true
		}
	}
	columns := slices.DeleteFunc(slices.Clone(shown), func(metric string) bool { return !present[metric] })
	fmt.Fprintf(text, "\n**%s**\n\n| | %s |\n|---|%s\n", title, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, e := range entries {
		name := e.contender.Name()
		if !slices.ContainsFunc(samples, func(s Sample) bool { return s.Contender == name }) {
			continue
		}
		fmt.Fprintf(text, "| %s |", name)
		for _, metric := range columns {
			fmt.Fprintf(text, " %s |", spreadOf(values[name][metric]))
		}
		if failures[name] > 0 {
			fmt.Fprintf(text, " %d of %d rounds failed |", failures[name], made[name])
		}
		if inability[name] != "" {
			fmt.Fprintf(text, " %s |", inability[name])
		}
		text.WriteString("\n")
	}
}

// Contenders writes who took part, in which version, and who did not, and why.
func Contenders(out io.Writer, entries []*entry) error {
	var text strings.Builder
	for _, e := range entries {
		switch {
		case e.absent != "":
			fmt.Fprintf(&text, "- **%s** takes no part: %s\n", e.contender.Name(), e.absent)
		default:
			fmt.Fprintf(&text, "- **%s**: %s\n", e.contender.Name(), e.versions)
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// CSV writes samples as they come: a line for each metric, and for each second
// of a series, whose metric is called "second N Mbit/s".
type CSV struct{ out *csv.Writer }

// NewCSV writes the names of the columns.
func NewCSV(out io.Writer) (*CSV, error) {
	c := &CSV{out: csv.NewWriter(out)}
	return c, c.write([][]string{{"scenario", "variant", "traffic", "contender", "round", "metric", "value"}})
}

// Write writes a sample, all of it: a run that is ended leaves what it had.
func (c *CSV) Write(s Sample) error {
	var rows [][]string
	row := func(metric, value string) {
		rows = append(rows, []string{s.Scenario, s.Variant, s.Traffic, s.Contender, strconv.Itoa(s.Round), metric, value})
	}
	if s.Err != "" {
		row(metricError, s.Err)
	}
	if s.Unable != "" {
		row(metricUnable, s.Unable)
	}
	for _, metric := range slices.Sorted(maps.Keys(s.Metrics)) {
		row(metric, strconv.FormatFloat(s.Metrics[metric], 'g', 6, 64))
	}
	for n, value := range s.Series {
		row(fmt.Sprintf("second %d Mbit/s", n+1), strconv.FormatFloat(value, 'g', 6, 64))
	}
	return c.write(rows)
}

func (c *CSV) write(rows [][]string) error {
	if err := c.out.WriteAll(rows); err != nil {
		return err
	}
	return c.out.Error()
}

// What is in the CSV in the place of figures.
const (
	metricError  = "error"
	metricUnable = "unable"
)

// Seconds writes the throughput of each second of the first round, as a table
// with a column for each contender: what the user saw when iperf3 stalled.
func Seconds(out io.Writer, entries []*entry, samples []Sample) error {
	var text strings.Builder
	type key struct{ variant, traffic string }
	var keys []key
	series := make(map[key]map[string][]float64)
	for _, s := range samples {
		if s.Round != 1 || len(s.Series) == 0 {
			continue
		}
		k := key{s.Variant, s.Traffic}
		if series[k] == nil {
			series[k] = make(map[string][]float64)
			keys = append(keys, k)
		}
		series[k][s.Contender] = s.Series
	}
	for _, k := range keys {
		var names []string
		for _, e := range entries {
			if series[k][e.contender.Name()] != nil {
				names = append(names, e.contender.Name())
			}
		}
		fmt.Fprintf(&text, "\n**%s, Mbit/s of each second, first round**\n\n| s | %s |\n|---|%s\n", strings.TrimPrefix(k.variant+", "+k.traffic, ", "), strings.Join(names, " | "), strings.Repeat("---|", len(names)))
		length := 0
		for _, values := range series[k] {
			length = max(length, len(values))
		}
		for n := range length {
			fmt.Fprintf(&text, "| %d |", n+1)
			for _, name := range names {
				if values := series[k][name]; n < len(values) {
					fmt.Fprintf(&text, " %s |", number(values[n]))
				} else {
					text.WriteString(" – |")
				}
			}
			text.WriteString("\n")
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}
