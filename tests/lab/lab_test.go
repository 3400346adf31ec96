package lab

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

var (
	chosenScenarios  = flag.String("scenarios", "smoke", "scenarios to run, separated by commas, or all")
	chosenContenders = flag.String("contenders", "", "contenders that take part, separated by commas; default: the scenario's")
	chosenRounds     = flag.Int("rounds", 0, "rounds of each measurement; default: the scenario's")
	outFolder        = flag.String("out", "", "folder for samples.csv and report.md; default: only the log has them")
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// TestLab runs the chosen scenarios: by default the smoke scenario, which
// shows that the lab works. Figures decide nothing here; a measurement that
// cannot be made does.
func TestLab(t *testing.T) {
	testnet.Need(t, "ip", "nft", "wg", "iperf3")
	scenarios, err := Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(*chosenScenarios, ",")
	if *chosenScenarios == "all" {
		names = names[:0]
		for name := range scenarios {
			if name != "smoke" {
				names = append(names, name)
			}
		}
	}
	var report, contendersText bytes.Buffer
	var all []Sample
	for _, name := range names {
		scenario, ok := scenarios[name]
		if !ok {
			t.Fatalf("there is no scenario %q", name)
		}
		t.Run(name, func(t *testing.T) {
			wanted := scenario.Contenders
			if *chosenContenders != "" {
				wanted = strings.Split(*chosenContenders, ",")
			}
			contenders, err := find(wanted)
			if err != nil {
				t.Fatal(err)
			}
			rounds := scenario.Rounds
			if *chosenRounds > 0 {
				rounds = *chosenRounds
			}
			entries := enter(t, scenario, contenders)
			var samples []Sample
			Run(t, scenario, entries, rounds, func(s Sample) {
				samples = append(samples, s)
				all = append(all, s)
				if s.Err != "" && name == "smoke" {
					t.Errorf("%s: %s", s, s.Err)
				}
			})
			if contendersText.Len() == 0 {
				Contenders(&contendersText, entries)
			}
			if err := Table(&report, scenario, entries, samples); err != nil {
				t.Fatal(err)
			}
			if err := Seconds(&report, samples); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Log("\n" + contendersText.String() + "\n" + report.String())
	if *outFolder == "" {
		return
	}
	var table bytes.Buffer
	if err := CSV(&table, all); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"report.md": append(contendersText.Bytes(), report.Bytes()...), "samples.csv": table.Bytes()} {
		if err := os.WriteFile(filepath.Join(*outFolder, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
