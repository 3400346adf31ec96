package lab

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// ReadCSV reads what CSV has written, without the series.
func ReadCSV(in io.Reader) ([]Sample, error) {
	rows, err := csv.NewReader(in).ReadAll()
	if err != nil {
		return nil, err
	}
	var samples []Sample
	for n, row := range rows {
		if n == 0 {
			continue
		}
		round, err := strconv.Atoi(row[4])
		if err != nil {
			return nil, fmt.Errorf("row %d: %w", n+1, err)
		}
		s := Sample{Scenario: row[0], Variant: row[1], Traffic: row[2], Contender: row[3], Round: round}
		if last := len(samples) - 1; last < 0 || samples[last].String() != s.String() {
			s.Metrics = make(map[string]float64)
			samples = append(samples, s)
		}
		last := &samples[len(samples)-1]
		switch metric, value := row[5], row[6]; {
		case metric == metricError:
			last.Err = value
		case metric == metricUnable:
			last.Unable = value
		case !strings.HasPrefix(metric, "second "):
			if last.Metrics[metric], err = strconv.ParseFloat(value, 64); err != nil {
				return nil, fmt.Errorf("row %d: %w", n+1, err)
			}
		}
	}
	return samples, nil
}

// compared are the metrics that tell whether two runs saw the same.
var compared = []string{metricRate, metricP50, metricNew}

// Compare writes, for each figure that two runs have in common, the spread of
// the rounds that both have, which have the same seeds, and ends with how many
// lie apart: those whose spreads do not overlap. Two runs over unchanged programs
// should have next to none.
func Compare(out io.Writer, then, now []Sample) error {
	type key struct{ scenario, variant, traffic, contender, metric string }
	var keys []key
	byRound := make(map[key]*[2]map[int]float64)
	for n, samples := range [][]Sample{then, now} {
		for _, s := range samples {
			for _, metric := range compared {
				value, ok := s.Metrics[metric]
				if !ok {
					continue
				}
				k := key{s.Scenario, s.Variant, s.Traffic, s.Contender, metric}
				if byRound[k] == nil {
					byRound[k] = &[2]map[int]float64{make(map[int]float64), make(map[int]float64)}
					keys = append(keys, k)
				}
				byRound[k][n][s.Round] = value
			}
		}
	}
	values := make(map[key]*[2][]float64)
	for k, runs := range byRound {
		values[k] = new([2][]float64)
		for round, before := range runs[0] {
			if after, ok := runs[1][round]; ok {
				values[k][0] = append(values[k][0], before)
				values[k][1] = append(values[k][1], after)
			}
		}
	}
	keys = slices.DeleteFunc(keys, func(k key) bool { return len(values[k][0]) == 0 })

	var text strings.Builder
	text.WriteString("| scenario | contender | | then | now | now / then | |\n|---|---|---|---|---|---|---|\n")
	apart := 0
	for _, k := range keys {
		a, b := spreadOf(values[k][0]), spreadOf(values[k][1])
		remark := ""
		if a.Max < b.Min || b.Max < a.Min {
			remark = "apart"
			apart++
		}
		what := strings.Join(slices.DeleteFunc([]string{k.scenario, k.variant, k.traffic}, func(s string) bool { return s == "" }), ", ")
		fmt.Fprintf(&text, "| %s | %s | %s | %s | %s | %.2f | %s |\n", what, k.contender, k.metric, a, b, b.Median/a.Median, remark)
	}
	fmt.Fprintf(&text, "\nFigures: %d; apart: %d.\n", len(keys), apart)
	_, err := io.WriteString(out, text.String())
	return err
}
