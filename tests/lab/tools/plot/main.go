// Command plot draws the laboratory's samples.csv as SVG files: for each
// scenario and traffic a bar for every contender, median and spread, and the
// throughput of each second of the first round.
//
//	plot -out FOLDER samples.csv
package main

import (
	"encoding/csv"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// sample is a line of the CSV.
type sample struct {
	scenario, variant, traffic, contender string
	round                                 int
	metric                                string
	value                                 float64
}

// drawn are the metrics that get bars.
var drawn = []string{"Mbit/s", "p95 ms", "new connection ms", "relay CPU-s/GiB"}

func main() {
	log.SetFlags(0)
	out := flag.String("out", ".", "folder for the SVG files")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("plot takes one file, samples.csv")
	}
	samples, err := read(flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	for _, scenario := range distinct(samples, func(s sample) string { return s.scenario }) {
		of := filter(samples, func(s sample) bool { return s.scenario == scenario })
		for _, traffic := range distinct(of, func(s sample) string { return s.traffic }) {
			of := filter(of, func(s sample) bool { return s.traffic == traffic })
			for _, metric := range drawn {
				if err := bars(*out, scenario, traffic, metric, filter(of, func(s sample) bool { return s.metric == metric })); err != nil {
					log.Fatal(err)
				}
			}
			for _, variant := range distinct(of, func(s sample) string { return s.variant }) {
				if err := seconds(*out, scenario, traffic, variant, filter(of, func(s sample) bool { return s.variant == variant && s.round == 1 })); err != nil {
					log.Fatal(err)
				}
			}
		}
	}
}

func read(path string) ([]sample, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		return nil, err
	}
	var samples []sample
	for _, row := range rows[1:] {
		s := sample{scenario: row[0], variant: row[1], traffic: row[2], contender: row[3], metric: row[5]}
		if s.metric == "error" || s.metric == "unable" {
			continue
		}
		if s.round, err = strconv.Atoi(row[4]); err != nil {
			return nil, err
		}
		if s.value, err = strconv.ParseFloat(row[6], 64); err != nil {
			return nil, err
		}
		samples = append(samples, s)
	}
	return samples, nil
}

func filter(samples []sample, keep func(sample) bool) (kept []sample) {
	for _, s := range samples {
		if keep(s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// distinct keeps the order of first appearance.
func distinct(samples []sample, of func(sample) string) (values []string) {
	for _, s := range samples {
		if value := of(s); !slices.Contains(values, value) {
			values = append(values, value)
		}
	}
	return values
}

const (
	width  = 9 * vg.Inch
	height = 4 * vg.Inch
)

// bars draws a group of bars for each contender, one for each variant.
func bars(out, scenario, traffic, metric string, samples []sample) error {
	if len(samples) == 0 {
		return nil
	}
	contenders := distinct(samples, func(s sample) string { return s.contender })
	variants := distinct(samples, func(s sample) string { return s.variant })
	p := plot.New()
	p.Title.Text = scenario + ": " + traffic
	p.Y.Label.Text = metric + " (median, least to most)"
	p.Y.Min = 0
	p.Legend.Top = true
	barWidth := vg.Points(min(24, 420/float64(len(contenders)*len(variants))))
	for v, variant := range variants {
		values := make(plotter.Values, len(contenders))
		spread := errorPoints{}
		offset := vg.Length(float64(v)-float64(len(variants)-1)/2) * barWidth
		for c, contender := range contenders {
			var rounds []float64
			for _, s := range samples {
				if s.variant == variant && s.contender == contender {
					rounds = append(rounds, s.value)
				}
			}
			if len(rounds) == 0 {
				continue
			}
			slices.Sort(rounds)
			values[c] = rounds[len(rounds)/2]
			// Bars are moved by lengths, points by values of the axis.
			x := float64(c) + float64(offset)/float64(width)*float64(len(contenders))*1.12
			spread.XYs = append(spread.XYs, plotter.XY{X: x, Y: values[c]})
			spread.YErrors = append(spread.YErrors, struct{ Low, High float64 }{values[c] - rounds[0], rounds[len(rounds)-1] - values[c]})
		}
		chart, err := plotter.NewBarChart(values, barWidth)
		if err != nil {
			return err
		}
		chart.Color = plotutil.Color(v)
		chart.Offset = offset
		chart.LineStyle.Width = 0
		whiskers, err := plotter.NewYErrorBars(spread)
		if err != nil {
			return err
		}
		p.Add(chart, whiskers)
		if variant != "" {
			p.Legend.Add(variant, chart)
		}
	}
	p.NominalX(contenders...)
	return p.Save(width, height, filepath.Join(out, name(scenario, traffic, metric)))
}

type errorPoints struct {
	plotter.XYs
	plotter.YErrors
}

var secondMetric = regexp.MustCompile(`^second (\d+) Mbit/s$`)

// seconds draws the throughput over time, a line for each contender.
func seconds(out, scenario, traffic, variant string, samples []sample) error {
	lines := make(map[string]plotter.XYs)
	for _, s := range samples {
		if match := secondMetric.FindStringSubmatch(s.metric); match != nil {
			n, _ := strconv.ParseFloat(match[1], 64)
			lines[s.contender] = append(lines[s.contender], plotter.XY{X: n, Y: s.value})
		}
	}
	if len(lines) == 0 {
		return nil
	}
	p := plot.New()
	p.Title.Text = strings.TrimSuffix(scenario+": "+traffic+", "+variant, ", ")
	p.X.Label.Text = "second"
	p.Y.Label.Text = "Mbit/s"
	p.Y.Min = 0
	p.Legend.Top = true
	for n, contender := range distinct(samples, func(s sample) string { return s.contender }) {
		if len(lines[contender]) == 0 {
			continue
		}
		line, err := plotter.NewLine(lines[contender])
		if err != nil {
			return err
		}
		line.Color, line.Dashes = plotutil.Color(n), plotutil.Dashes(n/7)
		line.Width = vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(contender, line)
	}
	return p.Save(width, height, filepath.Join(out, name(scenario, traffic, variant, "seconds")))
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

func name(parts ...string) string {
	joined := strings.ToLower(fmt.Sprint(strings.Join(parts, " ")))
	return strings.Trim(notInNames.ReplaceAllString(joined, "-"), "-") + ".svg"
}
