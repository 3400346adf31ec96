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
// both, and ends with how many of them lie apart: those whose spreads do not
// overlap. Two runs of one seed over unchanged programs should have next to
// none.
func Compare(out io.Writer, then, now []Sample) error {
	type key struct{ scenario, variant, traffic, contender, metric string }
	var keys []key
	values := make(map[key]*[2][]float64)
	for n, samples := range [][]Sample{then, now} {
		for _, s := range samples {
			for _, metric := range compared {
				value, ok := s.Metrics[metric]
				if !ok {
					continue
				}
				k := key{s.Scenario, s.Variant, s.Traffic, s.Contender, metric}
				if values[k] == nil {
					values[k] = new([2][]float64)
					keys = append(keys, k)
				}
				values[k][n] = append(values[k][n], value)
			}
		}
	}
	keys = slices.DeleteFunc(keys, func(k key) bool { return len(values[k][0]) == 0 || len(values[k][1]) == 0 })

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
