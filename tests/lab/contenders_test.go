package lab

import (
	"os"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/lab/line"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// labEnv allows the lab to build and install the contenders.
const labEnv = "HOMEWARD_LAB"

// TestContenders starts every contender on a good line and sends a second of
// each kind of traffic. One that cannot be had is left out with the reason.
func TestContenders(t *testing.T) {
	if testing.Short() || os.Getenv(labEnv) == "" {
		t.Skip("left out: builds and installs other people's programs, so it needs " + labEnv + "=1")
	}
	testnet.Need(t, "ip", "nft", "wg", "iperf3")
	good := line.Impairment{Rate: 100e6, Delay: line.Duration(2 * time.Millisecond)}
	traffics := []Traffic{
		{Name: "to home", Kind: kindBulk, Seconds: 1},
		{Name: "from home", Kind: kindBulk, From: "home", Seconds: 1},
		{Name: "requests", Kind: kindRequests, Seconds: 1},
		{Name: "ping beside an upload", Kind: kindPing, Seconds: 1, Beside: &Traffic{Kind: kindBulk, From: "home"}},
	}
	for i := range traffics {
		if err := traffics[i].complete(); err != nil {
			t.Fatal(err)
		}
	}
	for _, contender := range contenders {
		t.Run(contender.Name(), func(t *testing.T) {
			versions, err := contender.Obtain(t)
			if err != nil {
				t.Skipf("left out: %s: %v", contender.Name(), err)
			}
			t.Log(versions)
			w := NewWorld(t, good, good, 1)
			running := contender.Start(t, w)
			w.Reachable(t)
			for i := range traffics {
				relay, home := cpu(t, running.Relay), cpu(t, running.Home)
				r, err := w.run(t.Context(), &traffics[i])
				if err != nil {
					t.Errorf("%s: %v", traffics[i].Name, err)
					continue
				}
				t.Logf("%s: %v; CPU of the relay %v, of home %v", traffics[i].Name, r.metrics,
					cpu(t, running.Relay)-relay, cpu(t, running.Home)-home)
			}
		})
	}
}
