package lab

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/lab/line"
)

func TestScenarios(t *testing.T) {
	scenarios, err := Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	s := scenarios["home-line"]
	if s == nil {
		t.Fatal("the user's line is missing")
	}
	for _, variant := range s.Variants {
		down, up, err := s.lineOf(variant)
		if err != nil {
			t.Fatal(err)
		}
		// A variant changes what it names and leaves the rest.
		if down.Rate != 433_000_000 || up.Rate != 26_900_000 || time.Duration(up.QueueTime) != 500*time.Millisecond {
			t.Errorf("%s: %+v and %+v", variant.Name, down, up)
		}
		if lossless := variant.Name == "no loss"; lossless != (down.Loss == 0) || down.Loss != up.Loss {
			t.Errorf("%s: loss %g and %g", variant.Name, down.Loss, up.Loss)
		}
	}
	if s.Down.Loss != 0 {
		t.Error("a variant changed the scenario")
	}
}

func TestScenarioRefuses(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"misspelt", `{"titel": "x"}`, `unknown field "titel"`},
		{"no traffic", `{"title": "x"}`, "it has no traffic"},
		{"kind", `{"traffic": [{"name": "a", "kind": "torrent"}]}`, `there is no kind "torrent"`},
		{"from", `{"traffic": [{"name": "a", "kind": "bulk", "from": "moon"}]}`, "from client or home"},
		{"beside", `{"traffic": [{"name": "a", "kind": "ping", "beside": {"name": "b", "kind": "ping"}}]}`, "must be bulk"},
		{"negative seconds", `{"traffic": [{"name": "a", "kind": "bulk", "seconds": -1}]}`, "negative"},
		{"negative upload", `{"traffic": [{"name": "a", "kind": "upload", "mib": -1}]}`, "negative"},
		{"negative rate", `{"traffic": [{"name": "a", "kind": "udp", "rate": -50}]}`, "negative"},
		{"negative connections", `{"traffic": [{"name": "a", "kind": "idle", "connections": -1}]}`, "negative"},
		{"negative beside", `{"traffic": [{"name": "a", "kind": "udp", "beside": {"name": "b", "kind": "bulk", "streams": -4}}]}`, "negative"},
		{"datagram too small", `{"traffic": [{"name": "a", "kind": "udp", "size": 7}]}`, "from 8 to 65507 bytes, not 7"},
		{"datagram too large", `{"traffic": [{"name": "a", "kind": "udp", "size": 65508}]}`, "from 8 to 65507 bytes, not 65508"},
		{"loss", `{"traffic": [{"name": "a", "kind": "bulk"}], "down": {"loss": 2}}`, "from 0 to 1"},
		{"variant", `{"traffic": [{"name": "a", "kind": "bulk"}], "variants": [{"name": "v", "up": {"los": 1}}]}`, `unknown field "los"`},
		{"fault", `{"traffic": [{"name": "a", "kind": "bulk"}], "faults": [{"after": "1s", "up": {"loss": -1}}]}`, "from 0 to 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			scenario := new(Scenario)
			err := decode([]byte(test.text), scenario)
			if err == nil {
				err = scenario.complete()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestShorten(t *testing.T) {
	scenarios, err := Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	plain, faulty := scenarios["home-line"], scenarios["reconnect"]
	plain.shorten()
	if plain.Rounds != 1 || len(plain.Variants) != 2 || plain.Variants[0].Name != "no loss" || plain.Variants[1].Name != "1 % loss" || plain.Traffic[0].Seconds != 1 {
		t.Errorf("%+v", plain)
	}
	last := time.Duration(faulty.Faults[len(faulty.Faults)-1].After)
	faulty.shorten()
	for _, traffic := range faulty.Traffic {
		if took := time.Duration(traffic.Seconds) * time.Second; took <= last || took > last+5*time.Second {
			t.Errorf("%s takes %s; its faults last until %s", traffic.Name, took, last)
		}
	}
}

func TestChangedLeavesTheRest(t *testing.T) {
	down, up, err := changed(line.Impairment{Rate: 1, Loss: 0.5}, line.Impairment{Rate: 2}, json.RawMessage(`{"loss": 0}`), nil)
	if err != nil || down.Rate != 1 || down.Loss != 0 || up.Rate != 2 {
		t.Errorf("%+v, %+v, %v", down, up, err)
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   string
	}{
		{nil, "–"},
		{[]float64{1.234}, "1.23"},
		{[]float64{3, 1, 2}, "2.00 (1.00–3.00)"},
		{[]float64{400, 100, 200, 300}, "250 (100–400)"},
	} {
		if got := spreadOf(test.values).String(); got != test.want {
			t.Errorf("%v: %s, want %s", test.values, got, test.want)
		}
	}
}
