package tunnel

import (
	"slices"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// reload replaces a claim by one on another configuration, and returns it and
// what was logged meanwhile at level warn or above.
func reload(t *testing.T, c *Claim, next *Config) (*Claim, []observer.LoggedEntry) {
	t.Helper()
	core, logs := observer.New(zap.WarnLevel)
	younger := c.Tunnel().Claim(next, zap.New(core))
	t.Cleanup(func() { younger.Release() })
	if err := younger.Prepare(); err != nil {
		t.Fatal(err)
	}
	if err := c.Release(); err != nil {
		t.Fatal(err)
	}
	return younger, logs.All()
}

// TestChangedStackKeepsConnections begins with the stack that can be had
// everywhere, and asks for others while a connection is open.
func TestChangedStackKeepsConnections(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relayConfig.Stack = StackGvisor
	relay := New("relay")
	r := claim(t, relay, relayConfig)
	echoAt(t, claim(t, New("home"), homeConfig), 7)
	conn := dial(t, r, homeAddress, 7)
	mustEcho(t, conn, "before")

	const asConfigured = "the configuration says so"
	for _, step := range []struct {
		stack    StackChoice
		warnings int
		reason   string
	}{
		{StackKernel, 1, "the configuration now says kernel, which takes effect when Caddy is restarted"},
		{StackKernel, 0, "the configuration now says kernel, which takes effect when Caddy is restarted"},
		{StackAuto, 1, "the configuration now says auto, which takes effect when Caddy is restarted"},
		{StackGvisor, 0, asConfigured},
	} {
		next := *relayConfig
		next.Stack = step.stack
		younger, warnings := reload(t, r, &next)
		r = younger
		t.Run(step.stack.name(), func(t *testing.T) {
			if len(warnings) != step.warnings {
				t.Errorf("%d warnings, want %d: %v", len(warnings), step.warnings, warnings)
			}
			if got := relay.StackKind(); got != string(StackGvisor) {
				t.Errorf("the stack is now %q", got)
			}
			if got := relay.StackReason(); got != step.reason {
				t.Errorf("reason %q, want %q", got, step.reason)
			}
			mustEcho(t, conn, "after")
		})
	}
}

// TestStackThatAutoChose names what auto came to, which is no change.
func TestStackThatAutoChose(t *testing.T) {
	relayConfig, _ := ends(t)
	relay := New("relay")
	r := claim(t, relay, relayConfig)
	kind, reason := relay.StackKind(), relay.StackReason()
	for _, choice := range []StackChoice{StackChoice(kind), StackAuto} {
		next := *relayConfig
		next.Stack = choice
		younger, warnings := reload(t, r, &next)
		r = younger
		if len(warnings) != 0 || relay.StackReason() != reason {
			t.Errorf("auto came to %s; then %s: %q, %v", kind, choice.name(), relay.StackReason(), warnings)
		}
	}
}

// chooser is a stack that notes which congestion control it is told to use.
type chooser struct {
	netstack.Stack
	chosen []string
}

func (c *chooser) SetCongestionControl(name string) error {
	c.chosen = append(c.chosen, name)
	return nil
}

func TestChangedCongestionControl(t *testing.T) {
	relayConfig, _ := ends(t)
	relayConfig.Stack = StackGvisor
	relayConfig.CongestionControl = "cubic"
	relay := New("relay")
	r := claim(t, relay, relayConfig)
	stack := &chooser{Stack: relay.live.stack}
	relay.live.stack = stack
	for _, name := range []string{"cubic", "bbr", "bbr", ""} {
		next := *relayConfig
		next.CongestionControl = name
		r, _ = reload(t, r, &next)
	}
	if want := []string{"bbr", ""}; !slices.Equal(stack.chosen, want) {
		t.Errorf("the stack was told %q, want %q", stack.chosen, want)
	}
}

// TestCongestionControlOfGvisor asks gVisor's stack for what it does not have:
// the log says so once, and nothing claims that it is used.
func TestCongestionControlOfGvisor(t *testing.T) {
	relayConfig, _ := ends(t)
	relayConfig.Stack = StackGvisor
	relay := New("relay")
	r := claim(t, relay, relayConfig)
	for _, step := range []struct {
		name     string
		warnings int
		reason   string
	}{
		{"cubic", 0, "the configuration says so"},
		{"bbr", 1, "the configuration says so; congestion_control bbr is not used, since this stack has only cubic"},
		{"bbr", 0, "the configuration says so; congestion_control bbr is not used, since this stack has only cubic"},
		{"", 0, "the configuration says so"},
	} {
		next := *relayConfig
		next.CongestionControl = step.name
		younger, warnings := reload(t, r, &next)
		r = younger
		if len(warnings) != step.warnings {
			t.Errorf("%q: %d warnings, want %d: %v", step.name, len(warnings), step.warnings, warnings)
		}
		state, up := relay.State()
		if !up || state.CongestionControl != "" || state.StackReason != step.reason {
			t.Errorf("%q: the state has congestion control %q, and for its stack the reason %q", step.name, state.CongestionControl, state.StackReason)
		}
	}
}

// TestCongestionControlOfTheKernel reads back what a reload has changed.
func TestCongestionControlOfTheKernel(t *testing.T) {
	relayConfig, _ := ends(t)
	relayConfig.CongestionControl = "cubic"
	relay := New("relay")
	r := claim(t, relay, relayConfig)
	if relay.StackKind() != string(StackKernel) {
		t.Skip("left out: " + relay.StackReason())
	}
	// Every kernel has reno.
	for _, name := range []string{"cubic", "reno"} {
		next := *relayConfig
		next.CongestionControl = name
		r, _ = reload(t, r, &next)
		if state, up := relay.State(); !up || state.CongestionControl != name {
			t.Errorf("got %q, want %q", state.CongestionControl, name)
		}
	}
}
