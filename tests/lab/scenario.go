package lab

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/homeward-relay/homeward/tests/lab/line"
)

//go:embed scenarios/*.json
var scenarioFiles embed.FS

// Scenario is a line, what is sent over it, and how often it is measured.
type Scenario struct {
	// Name is the file's, without .json.
	Name string `json:"-"`

	// Title says what the scenario is, in one line.
	Title string `json:"title"`

	// Down is the line from the internet to home, Up the one from home.
	Down line.Impairment `json:"down"`
	Up   line.Impairment `json:"up"`

	// Cable says that there is no line but a cable, as fast as the machine is:
	// what is measured is the relay.
	Cable bool `json:"cable,omitempty"`

	// Variants are the scenario again with parts of the line changed. With
	// none there is one, without a name.
	Variants []Variant `json:"variants,omitempty"`

	// Traffic is what is measured, one after the other.
	Traffic []Traffic `json:"traffic"`

	// Faults happen while each traffic runs, in this order.
	Faults []Fault `json:"faults,omitempty"`

	// Rounds is how often each contender is measured. Default: 3.
	Rounds int `json:"rounds,omitempty"`

	// Contenders are those that take part. Default: all.
	Contenders []string `json:"contenders,omitempty"`

	// Without are those that do not.
	Without []string `json:"without,omitempty"`

	// Seed of the line's random decisions. Every contender gets the same one
	// in the same round. Default: 1.
	Seed uint64 `json:"seed,omitempty"`
}

// Variant changes a scenario's line. What it leaves out stays as it is.
type Variant struct {
	Name string          `json:"name"`
	Down json.RawMessage `json:"down,omitempty"`
	Up   json.RawMessage `json:"up,omitempty"`
}

// Fault is what happens some time after a traffic has begun.
type Fault struct {
	After line.Duration `json:"after"`

	// Down and Up change the line, as in a Variant.
	Down json.RawMessage `json:"down,omitempty"`
	Up   json.RawMessage `json:"up,omitempty"`

	// ForgetNAT makes home's router forget its connections. NewAddress gives
	// it another public address as well, as a daily reconnect does.
	ForgetNAT  bool `json:"forget_nat,omitempty"`
	NewAddress bool `json:"new_address,omitempty"`
}

// Traffic is one thing that is sent and measured.
type Traffic struct {
	// Name is the column's in tables.
	Name string `json:"name"`

	// Kind is bulk (TCP streams by iperf3: throughput), many (TCP streams by
	// the hundred, all busy: throughput), requests (many small
	// requests on connections of their own: latency), ping (a byte to home
	// and back on one connection: latency), recovery (how long after the last
	// fault an idle connection and a new one bring an answer), upload (data of
	// a given length and their sum: how long a user waits), udp (datagrams to
	// home and back: loss and latency), idle (many connections that nobody
	// uses: the relay's memory, and which of them still answer), https (small
	// pages on connections of their own: latency), browser (pages with their
	// objects on one connection of HTTP/2: latency), or websocket (ping in
	// messages of a websocket).
	Kind string `json:"kind"`

	// From is client or home: who sends in a bulk transfer or an upload.
	// Default: client.
	From string `json:"from,omitempty"`

	// Streams of a bulk transfer, or of many. Default: 1.
	Streams int `json:"streams,omitempty"`

	// Seconds that it runs; an upload takes what it takes, and recovery has
	// given up then. Default: 5, and 40 for recovery.
	Seconds int `json:"seconds,omitempty"`

	// MiB of an upload. Default: 16.
	MiB int `json:"mib,omitempty"`

	// Size of a datagram in bytes, and Rate in datagrams per second. Default:
	// 200 and 50, a voice or a game.
	Size int `json:"size,omitempty"`
	Rate int `json:"rate,omitempty"`

	// Connections that are idle. Default: 500.
	Connections int `json:"connections,omitempty"`

	// Beside is bulk traffic that runs at the same time, unmeasured.
	Beside *Traffic `json:"beside,omitempty"`
}

// Scenarios returns all scenarios by name.
func Scenarios() (map[string]*Scenario, error) {
	names, err := fs.Glob(scenarioFiles, "scenarios/*.json")
	if err != nil {
		return nil, err
	}
	scenarios := make(map[string]*Scenario)
	for _, name := range names {
		raw, err := scenarioFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		scenario := &Scenario{Name: strings.TrimSuffix(path.Base(name), ".json")}
		if err := decode(raw, scenario); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := scenario.complete(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		scenarios[scenario.Name] = scenario
	}
	return scenarios, nil
}

// decode reads JSON and refuses members that are not there, since one that is
// misspelt would measure something else.
func decode(raw []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}

// complete fills in defaults and checks everything.
func (s *Scenario) complete() error {
	if s.Rounds == 0 {
		s.Rounds = 3
	}
	if s.Seed == 0 {
		s.Seed = 1
	}
	if len(s.Variants) == 0 {
		s.Variants = []Variant{{}}
	}
	errs := []error{s.Down.Check(), s.Up.Check()}
	if s.Cable && (s.Down != line.Impairment{} || s.Up != line.Impairment{} || len(s.Faults) > 0) {
		errs = append(errs, errors.New("a cable has neither down nor up nor faults"))
	}
	if len(s.Traffic) == 0 {
		errs = append(errs, errors.New("it has no traffic"))
	}
	for i := range s.Traffic {
		errs = append(errs, s.Traffic[i].complete())
	}
	for _, v := range s.Variants {
		_, _, err := s.lineOf(v)
		errs = append(errs, err)
	}
	for _, f := range s.Faults {
		_, _, err := changed(s.Down, s.Up, f.Down, f.Up)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (t *Traffic) complete() error {
	if t.Seconds == 0 && t.Kind == kindRecovery {
		t.Seconds = recoverySeconds
	}
	if t.Seconds == 0 {
		t.Seconds = 5
	}
	if t.Streams == 0 {
		t.Streams = 1
	}
	if t.From == "" {
		t.From = "client"
	}
	if t.MiB == 0 {
		t.MiB = 16
	}
	if t.Size == 0 {
		t.Size = 200
	}
	if t.Rate == 0 {
		t.Rate = 50
	}
	if t.Connections == 0 {
		t.Connections = 500
	}
	if kinds[t.Kind] == nil {
		return fmt.Errorf("traffic %q: there is no kind %q", t.Name, t.Kind)
	}
	if !slices.Contains([]string{"client", "home"}, t.From) {
		return fmt.Errorf("traffic %q: it is from client or home, not %q", t.Name, t.From)
	}
	if min(t.Seconds, t.Streams, t.MiB, t.Rate, t.Connections) < 0 {
		return fmt.Errorf("traffic %q: none of seconds, streams, mib, rate and connections is negative", t.Name)
	}
	if t.Size < numberLength || t.Size > largestDatagram {
		return fmt.Errorf("traffic %q: a datagram has from %d to %d bytes, not %d", t.Name, numberLength, largestDatagram, t.Size)
	}
	if t.Beside == nil {
		return nil
	}
	if t.Beside.Kind != kindBulk {
		return fmt.Errorf("traffic %q: what runs beside it must be bulk", t.Name)
	}
	return t.Beside.complete()
}

// shorten makes of a scenario a look at it: the first variant and the last, one
// round, and no traffic longer than a second or two beside what its faults take.
func (s *Scenario) shorten() {
	s.Rounds = 1
	if len(s.Variants) > 2 {
		s.Variants = []Variant{s.Variants[0], s.Variants[len(s.Variants)-1]}
	}
	var faults time.Duration
	for _, f := range s.Faults {
		faults = max(faults, time.Duration(f.After))
	}
	for i := range s.Traffic {
		t := &s.Traffic[i]
		longest := 1
		if len(s.Faults) > 0 {
			longest = 2 + int(faults.Seconds())
		}
		t.Seconds = min(t.Seconds, longest)
		t.MiB = min(t.MiB, 2)
	}
}

// lineOf is the line of a variant.
func (s *Scenario) lineOf(v Variant) (down, up line.Impairment, err error) {
	return changed(s.Down, s.Up, v.Down, v.Up)
}

// changed puts changes on top of a line.
func changed(down, up line.Impairment, downChange, upChange json.RawMessage) (line.Impairment, line.Impairment, error) {
	for _, part := range []struct {
		line   *line.Impairment
		change json.RawMessage
	}{{&down, downChange}, {&up, upChange}} {
		if part.change == nil {
			continue
		}
		if err := decode(part.change, part.line); err != nil {
			return down, up, err
		}
		if err := part.line.Check(); err != nil {
			return down, up, err
		}
	}
	return down, up, nil
}
