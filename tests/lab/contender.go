package lab

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

	// Start sets up relay and home in a world, so that each of Ports and
	// UDPPorts of the relay's public address reaches the same port at home. What
	// it starts ends with t.
	Start(t testing.TB, w *World) Running
}

// limited is a contender that cannot do everything.
type limited interface {
	// Unable says why it cannot have a kind of traffic, or what else some
	// traffic needs (needHalfClose), or nothing if it can.
	Unable(need string) (why string)
}

// tuned is a contender that needs another TCP at the client and at home than
// most hosts have.
type tuned interface {
	// CongestionControl is the name that Linux has for it.
	CongestionControl() string
}

// needHalfClose is that the end of one direction of a connection is passed on
// and the other direction goes on.
const needHalfClose = "half-close"

// unable says why a contender cannot have a traffic, or nothing.
func unable(contender Contender, traffic *Traffic) (why string) {
	limited, ok := contender.(limited)
	if !ok {
		return ""
	}
	why = limited.Unable(traffic.Kind)
	if why == "" && traffic.Kind == kindUpload && traffic.From == "client" {
		why = limited.Unable(needHalfClose)
	}
	return why
}

// Running are the processes of a contender whose CPU time counts. A
// contender that lives in the kernel has none.
type Running struct {
	Relay, Home []*testnet.Process
}

// Ports that every contender brings home.
const (
	bulkPort     = 5201 // iperf3
	askPort      = 7007 // TCP: whatever is sent comes back
	uploadPort   = 7008 // TCP: an upload and its sum
	datagramPort = 7009 // UDP: whatever is sent comes back
	streamPort   = 7010 // TCP: takes or sends without end
	webPort      = 443  // HTTPS
)

var (
	// Ports are those of TCP.
	Ports = []int{bulkPort, askPort, uploadPort, streamPort, webPort}

	// UDPPorts are those of UDP.
	UDPPorts = []int{datagramPort}
)

// plainPorts are Ports without the web's, for a relay whose reverse proxy has
// that one.
func plainPorts() []int {
	return slices.DeleteFunc(slices.Clone(Ports), func(port int) bool { return port == webPort })
}

// goodLine is what a world has between measurements.
var goodLine = line.Impairment{Rate: 500e6, Delay: line.Duration(2 * time.Millisecond)}

// World is the user's situation with an emulated line between the CGN and the
// internet.
type World struct {
	*testnet.Internet

	// Line's direction AtoB is the one to home. It is nil where there is a
	// cable instead.
	Line *line.Line

	// taken is what home's stream service has taken, in bytes.
	taken atomic.Int64

	// ca is whom clients trust, and a relay that has a reverse proxy.
	ca *testnet.CA

	// congestionControl is what the TCP of all hosts has.
	congestionControl string
}

// customaryTCP is the congestion control that most hosts have, whatever this
// one does.
const customaryTCP = "cubic"

// NewWorld makes a world with a good line, or a cable. Home has the services that traffic
// needs, on all of its addresses.
func NewWorld(t testing.TB, congestionControl string, cable bool) *World {
	t.Helper()
	w := &World{congestionControl: congestionControl}
	if cable {
		w.Internet = testnet.NewInternet(t)
	} else {
		w.connect(t)
	}
	for _, host := range w.hosts() {
		// What a host learned from a bad line would slow down the next run.
		host.Sysctl(t, "net.ipv4.tcp_no_metrics_save", "1")
	}
	w.useCongestionControl(t)
	w.startServices(t)
	return w
}

// connect makes the internet with a good line in it.
func (w *World) connect(t testing.TB) {
	t.Helper()
	w.Internet = testnet.NewInternetOver(t, func(t testing.TB, router *testnet.Namespace, eth string, core *testnet.Namespace, name string) {
		var err error
		w.Line, err = line.New(line.Config{
			A:    line.End{Name: name, Enter: core.Do},
			B:    line.End{Name: eth, Enter: router.Do},
			AtoB: goodLine,
			BtoA: goodLine,
			Seed: 1,
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
}

func (w *World) hosts() []*testnet.Namespace {
	return []*testnet.Namespace{w.Client, w.Relay, w.Home}
}

// useCongestionControl says by route what TCP to use, since a namespace may
// not choose what its host restricts. It is called again when there are routes
// into a tunnel.
func (w *World) useCongestionControl(t testing.TB) {
	t.Helper()
	for _, host := range w.hosts() {
		for route := range strings.Lines(host.Output(t, "ip", "-4", "route", "show")) {
			if !strings.Contains(route, "congctl") {
				host.IP(t, "route replace "+strings.TrimSpace(route)+" congctl "+w.congestionControl)
			}
		}
	}
}

// forgetPaths makes everybody forget the path MTUs that a line before this one
// had.
func (w *World) forgetPaths() error {
	for _, namespace := range append(w.hosts(), w.Core, w.Router) {
		if out, err := namespace.Command("ip", "route", "flush", "cache").CombinedOutput(); err != nil {
			return fmt.Errorf("forgetting path MTUs in %s: %w: %s", namespace.Name, err, out)
		}
	}
	return nil
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
