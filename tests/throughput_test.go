package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestThroughput prints how fast the relay is, both ways, beside a relay made
// of wireguard-go's own netstack, in turns on the same machine. Only a
// transfer that fails is a failure: how fast it is depends on who else uses
// the machine.
func TestThroughput(t *testing.T) {
	if testing.Short() {
		t.Skip("left out: figures take a while")
	}
	testnet.Need(t, "iperf3")
	ours, stock := ourRig(t), stockRig(t)

	const rounds = 3
	for range rounds {
		for _, rig := range []*rig{ours, stock} {
			rig.measure(t, "up")
			rig.measure(t, "down", "--reverse")
		}
	}

	var table strings.Builder
	fmt.Fprintf(&table, "Relay throughput, median of %d runs of 3 s, one stream, MTU 1420:\n", rounds)
	fmt.Fprintf(&table, "  %-28s %12s %12s %16s %16s\n", "", "up Gbit/s", "down Gbit/s", "up CPU-s/GiB", "down CPU-s/GiB")
	for _, rig := range []*rig{ours, stock} {
		fmt.Fprintf(&table, "  %-28s %12.2f %12.2f %16.1f %16.1f\n", rig.name,
			median(rig.rate["up"]), median(rig.rate["down"]), median(rig.cpu["up"]), median(rig.cpu["down"]))
	}
	figure(t, "%s", table.String())
}

// rig is a relay under measurement, in an internet of its own, with iperf3 at
// home on port 5201.
type rig struct {
	name   string
	client *testnet.Namespace
	relay  *testnet.Process
	rate   map[string][]float64 // Gbit/s by direction
	cpu    map[string][]float64 // CPU-seconds of the relay per GiB
}

func newRig(t *testing.T, name string, internet *testnet.Internet, relay *testnet.Process) *rig {
	t.Helper()
	server := testnet.Start(t, "iperf3", internet.Home.Command("iperf3", "--server", "--forceflush"))
	server.WaitLog(t, 0, "Server listening", 10*time.Second)
	return &rig{
		name: name, client: internet.Client, relay: relay,
		rate: make(map[string][]float64), cpu: make(map[string][]float64),
	}
}

// ourRig is the relay as users have it: built without the race detector.
func ourRig(t *testing.T) *rig {
	t.Helper()
	w := newWorld(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	w.start(t, replace(t, w.ports(t), "mtu 1280", "mtu 1420"))
	return newRig(t, "homeward", w.Internet, w.relay.Process)
}

// stockRig is wireguard-go's own netstack and a loop of io.Copy.
func stockRig(t *testing.T) *rig {
	t.Helper()
	internet, keys := testnet.NewInternet(t), testnet.NewTunnelKeys(t)
	uapi := filepath.Join(testnet.Folder(t), "uapi")
	testnet.WriteFile(t, uapi, fmt.Appendf(nil, "private_key=%s\nlisten_port=51820\npublic_key=%s\nallowed_ip=%s/32\n",
		testnet.Hex(t, keys.Relay.Private), testnet.Hex(t, keys.Home.Public), testnet.HomeTunnelIP), 0o600)
	binary := testnet.Build(t, "HOMEWARD_STOCKNETSTACK", "stocknetstack", "./tests/stocknetstack")
	relay := testnet.Start(t, "stocknetstack", internet.Relay.Command(binary,
		"-uapi", uapi, "-address", testnet.RelayTunnelIP, "-mtu", "1420",
		"-forward", ":5201="+testnet.HomeTunnelIP+":5201"))
	relay.WaitLog(t, 0, "serving", 10*time.Second)
	home := testnet.StartHome(t, internet.Home, keys, testnet.HomeConfig{})
	home.WaitHandshake(t)
	return newRig(t, "wireguard-go's own netstack", internet, relay)
}

// measure runs iperf3 through the relay. iperf3 gives up when its control
// connection ends early, which the stock netstack at times brings about: it
// may try again.
func (r *rig) measure(t *testing.T, direction string, flags ...string) {
	t.Helper()
	var err error
	for range 3 {
		if err = r.try(t, direction, flags...); err == nil {
			return
		}
		t.Logf("%s, %s: %v", r.name, direction, err)
	}
	t.Fatalf("%s, %s: %v", r.name, direction, err)
}

func (r *rig) try(t *testing.T, direction string, flags ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	args := append([]string{"--client", testnet.Endpoint, "--time", "3", "--json"}, flags...)
	before := r.relay.CPU(t)
	// With --json, iperf3 reports errors there and not by its status alone.
	out, err := r.client.CommandContext(ctx, "iperf3", args...).Output()
	spent := r.relay.CPU(t) - before
	var result struct {
		Error string
		End   struct {
			SumReceived struct {
				Bytes         float64 `json:"bytes"`
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if jsonErr := json.Unmarshal(out, &result); jsonErr != nil {
		return fmt.Errorf("reading what iperf3 says (%w): %w", err, jsonErr)
	}
	received := result.End.SumReceived
	if received.Bytes == 0 {
		return fmt.Errorf("nothing arrived: %s", result.Error)
	}
	r.rate[direction] = append(r.rate[direction], received.BitsPerSecond/1e9)
	r.cpu[direction] = append(r.cpu[direction], spent.Seconds()/(received.Bytes/(1<<30)))
	return nil
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}
