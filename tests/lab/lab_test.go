package lab

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

var (
	chosenScenarios  = flag.String("scenarios", "smoke", "scenarios to run, separated by commas, or all")
	chosenContenders = flag.String("contenders", "", "contenders that take part, separated by commas; default: the scenario's")
	chosenRounds     = flag.Int("rounds", 0, "rounds of each measurement; default: the scenario's")
	quick            = flag.Bool("quick", false, "one round of a few contenders, in which nothing takes longer than it must: for a look, not for figures")
	against          = flag.String("against", "", "samples.csv of an earlier run to compare this one with")
	outFolder        = flag.String("out", "", "folder for samples.csv and report.md; default: only the log has them")
)

func TestMain(m *testing.M) {
	raiseDescriptors()
	os.Exit(testnet.Main(m))
}

// descriptors are what ten thousand connections take in one process that has
// both their ends, and some more.
const descriptors = 1 << 16

// raiseDescriptors lets this process and those that it starts have enough.
// Without root they have what there is, and the largest measurements fail.
func raiseDescriptors() {
	limit := syscall.Rlimit{Cur: descriptors, Max: descriptors}
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err == nil && now.Max < descriptors {
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}

// TestLab runs the chosen scenarios: by default the smoke scenario, which
// shows that the lab works. Figures decide nothing here; a measurement of the
// smoke scenario that cannot be made does.
func TestLab(t *testing.T) {
	testnet.Need(t, "ip", "nft", "wg", "iperf3")
	chosen, err := chooseScenarios(*chosenScenarios)
	if err != nil {
		t.Fatal(err)
	}
	takePart := make(map[string][]string) // the contenders' names by scenario
	var names []string
	for _, scenario := range chosen {
		if *quick {
			scenario.shorten()
		}
		if *chosenRounds > 0 {
			scenario.Rounds = *chosenRounds
		}
		takePart[scenario.Name] = participants(scenario)
		names = append(names, takePart[scenario.Name]...)
	}
	taking := slices.DeleteFunc(slices.Clone(contenders), func(c Contender) bool { return !slices.Contains(names, c.Name()) })
	var earlier, all []Sample
	if *against != "" {
		earlier = readSamples(t, *against)
	}
	out := newOutput(t, *outFolder)
	entries := enter(t, taking)
	out.contenders(t, entries)
	for _, scenario := range chosen {
		t.Run(scenario.Name, func(t *testing.T) {
			mine := slices.DeleteFunc(slices.Clone(entries), func(e *entry) bool {
				return !slices.Contains(takePart[scenario.Name], e.contender.Name())
			})
			var samples []Sample
			Run(t, scenario, mine, scenario.Rounds, func(s Sample) {
				samples = append(samples, s)
				out.sample(t, s)
				if s.Err != "" && scenario.Name == "smoke" {
					t.Errorf("%s: %s", s, s.Err)
				}
			})
			out.scenario(t, scenario, mine, samples)
			all = append(all, samples...)
		})
	}
	if earlier != nil {
		out.comparison(t, earlier, all)
	}
	t.Log("\n" + out.report.String())
}

// chooseScenarios returns scenarios by their names, or all but the one for CI,
// in the order of their names.
func chooseScenarios(names string) (chosen []*Scenario, err error) {
	scenarios, err := Scenarios()
	if err != nil {
		return nil, err
	}
	wanted := strings.Split(names, ",")
	if names == "all" {
		wanted = nil
		for name := range scenarios {
			if name != "smoke" {
				wanted = append(wanted, name)
			}
		}
		slices.Sort(wanted)
	}
	for _, name := range wanted {
		if scenarios[name] == nil {
			return nil, fmt.Errorf("there is no scenario %q", name)
		}
		chosen = append(chosen, scenarios[name])
	}
	return chosen, nil
}

// quickContenders take part in a quick run: ours, the line itself, what the
// user had, and the two that people have most.
var quickContenders = []string{"direct", "homeward", "fastd", "frp", "wireguard-go"}

// participants are the names of the contenders that take part in a scenario.
func participants(scenario *Scenario) (names []string) {
	switch {
	case *chosenContenders != "":
		names = strings.Split(*chosenContenders, ",")
	case *quick && len(scenario.Contenders) == 0:
		names = slices.Clone(quickContenders)
	case len(scenario.Contenders) > 0:
		names = slices.Clone(scenario.Contenders)
	default:
		for _, c := range contenders {
			names = append(names, c.Name())
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return slices.Contains(scenario.Without, name) })
}

// output is where the results go. They are written as they come, so that a run
// that is ended leaves what it had.
type output struct {
	folder string
	csv    *CSV
	report bytes.Buffer
}

// newOutput writes into a folder, or nowhere if it is "".
func newOutput(t *testing.T, folder string) *output {
	t.Helper()
	o := &output{folder: folder}
	if folder == "" {
		return o
	}
	file, err := os.Create(filepath.Join(folder, "samples.csv"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if o.csv, err = NewCSV(file); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *output) sample(t *testing.T, s Sample) {
	t.Helper()
	if o.csv == nil {
		return
	}
	if err := o.csv.Write(s); err != nil {
		t.Error(err)
	}
}

func (o *output) contenders(t *testing.T, entries []*entry) {
	t.Helper()
	o.report.WriteString("## Contenders\n\n")
	if err := Contenders(&o.report, entries); err != nil {
		t.Error(err)
	}
	o.flush(t)
}

func (o *output) scenario(t *testing.T, scenario *Scenario, entries []*entry, samples []Sample) {
	t.Helper()
	o.report.WriteString("\n")
	if err := errors.Join(Table(&o.report, scenario, entries, samples), Seconds(&o.report, entries, samples)); err != nil {
		t.Error(err)
	}
	o.flush(t)
}

func (o *output) comparison(t *testing.T, then, now []Sample) {
	t.Helper()
	o.report.WriteString("\n## Against an earlier run\n\n")
	if err := Compare(&o.report, then, now); err != nil {
		t.Error(err)
	}
	o.flush(t)
}

func readSamples(t *testing.T, path string) []Sample {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	samples, err := ReadCSV(file)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return samples
}

func (o *output) flush(t *testing.T) {
	t.Helper()
	if o.folder == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(o.folder, "report.md"), o.report.Bytes(), 0o644); err != nil {
		t.Error(err)
	}
}
