package lab

import (
	"fmt"
	"testing"

	"github.com/homeward-relay/homeward/tests/lab/line"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// Contender is a way to bring TCP ports of the relay's public address home.
type Contender interface {
	// Name is short and the same in every table.
	Name() string

	// Obtain makes the programs ready, and returns what they are and their
	// versions. An error says why they cannot be had here.
	Obtain(t testing.TB) (versions string, err error)

	// Start sets up relay and home in a world, so that each of Ports of the
	// relay's public address reaches the same port at home, and returns once
	// that works. What it starts ends with t.
	Start(t testing.TB, w *World) Running
}

// Running are the processes of a contender whose CPU time counts. A
// contender that lives in the kernel has none.
type Running struct {
	Relay, Home []*testnet.Process
}

// Ports that every contender brings home.
const (
	bulkPort = 5201 // iperf3
	askPort  = 7007 // a byte or a small request, and its answer
)

// Ports are all of them.
var Ports = []int{bulkPort, askPort}

// World is the user's situation with an emulated line between the CGN and the
// internet.
type World struct {
	*testnet.Internet

	// Line's direction AtoB is the one to home.
	Line *line.Line
}

// congestionControl is what most hosts have, whatever this one does.
const congestionControl = "cubic"

// NewWorld makes a world. Home has the services that traffic needs, on all of
// its addresses. The hosts' TCP is cubic.
func NewWorld(t testing.TB, down, up line.Impairment, seed uint64) *World {
	t.Helper()
	w := new(World)
	w.Internet = testnet.NewInternetOver(t, func(t testing.TB, router *testnet.Namespace, eth string, core *testnet.Namespace, name string) {
		var err error
		w.Line, err = line.New(line.Config{
			A:    line.End{Name: name, Enter: core.Do},
			B:    line.End{Name: eth, Enter: router.Do},
			AtoB: down,
			BtoA: up,
			Seed: seed,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.Line.Close(); err != nil {
				t.Error(err)
			}
		})
	})
	// By route, since a namespace may not choose what its host restricts. For
	// routes into tunnels, bulk says it to iperf3.
	w.Client.IP(t, "route replace default via 198.51.100.1 congctl "+congestionControl)
	w.Relay.IP(t, "route replace default via 203.0.113.1 congctl "+congestionControl)
	w.Home.IP(t, "route replace default via 192.168.178.1 congctl "+congestionControl)
	w.startServices(t)
	return w
}

// contenders are all that there are, in the tables' order.
var contenders []Contender

// register adds a contender to the lab. Call it in an init function.
func register(c Contender) { contenders = append(contenders, c) }

// find returns the contenders of the given names, or all without names.
func find(names []string) ([]Contender, error) {
	if len(names) == 0 {
		return contenders, nil
	}
	var found []Contender
next:
	for _, name := range names {
		for _, c := range contenders {
			if c.Name() == name {
				found = append(found, c)
				continue next
			}
		}
		return nil, fmt.Errorf("there is no contender %q", name)
	}
	return found, nil
}
