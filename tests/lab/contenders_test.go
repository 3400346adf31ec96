package lab

import (
	"os"
	"testing"

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
	traffics := []Traffic{
		{Name: "to home", Kind: kindBulk, Seconds: 1},
		{Name: "from home", Kind: kindBulk, From: "home", Seconds: 1},
		{Name: "requests", Kind: kindRequests, Seconds: 1},
		{Name: "ping beside an upload", Kind: kindPing, Seconds: 1, Beside: &Traffic{Kind: kindBulk, From: "home"}},
		{Name: "upload", Kind: kindUpload, MiB: 1},
		{Name: "upload from home", Kind: kindUpload, From: "home", MiB: 1},
		{Name: "datagrams", Kind: kindUDP, Seconds: 1},
		{Name: "datagrams beside an upload", Kind: kindUDP, Seconds: 1, Beside: &Traffic{Kind: kindBulk, From: "home"}},
		{Name: "idle", Kind: kindIdle, Seconds: 1, Connections: 100},
		{Name: "https", Kind: kindHTTPS, Seconds: 1},
		{Name: "browser", Kind: kindBrowser, Seconds: 1},
		{Name: "websocket", Kind: kindWebSocket, Seconds: 1},
	}
	scenario := &Scenario{Traffic: traffics}
	if err := scenario.complete(); err != nil {
		t.Fatal(err)
	}
	for _, contender := range contenders {
		t.Run(contender.Name(), func(t *testing.T) {
			e := enter(t, []Contender{contender})[0]
			if e.absent != "" {
				t.Skipf("left out: %s: %s", contender.Name(), e.absent)
			}
			t.Log(e.versions)
			for i := range traffics {
				if why := unable(contender, &traffics[i]); why != "" {
					t.Logf("%s: %s", traffics[i].Name, why)
					continue
				}
				r, err := e.measure(t, scenario, scenario.Variants[0], &traffics[i], 1)
				if err != nil {
					t.Errorf("%s: %v", traffics[i].Name, err)
					continue
				}
				t.Logf("%s: %v", traffics[i].Name, r.metrics)
			}
		})
	}
}
