package tunnel

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// waitLog waits for a line with a message, and returns its fields.
func waitLog(t *testing.T, logs *observer.ObservedLogs, message string) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if lines := logs.FilterMessageSnippet(message).All(); len(lines) > 0 {
			return lines[0].ContextMap()
		}
	}
	t.Fatalf("no line with %q in %v", message, logs.All())
	return nil
}

func observed(t *testing.T, tunnel *Tunnel, config *Config) (*Claim, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	c := tunnel.Claim(config, zap.New(core))
	t.Cleanup(func() { c.Release() })
	if err := c.Prepare(); err != nil {
		t.Fatal(err)
	}
	return c, logs
}

func TestLogSaysWhoIsUp(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := New("relay")
	_, logs := observed(t, relay, relayConfig)
	claim(t, New("home"), homeConfig)
	if fields := waitLog(t, logs, "peer is up"); fields["peer"] != "home" || fields["endpoint"] == "" {
		t.Errorf("fields %v", fields)
	}
	if s := relay.Status()[0]; s.LastReceived.IsZero() || time.Since(s.LastReceived) > time.Minute {
		t.Errorf("last received %s", s.LastReceived)
	}
}

func TestLogSaysWhoFallsSilent(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := New("relay")
	_, logs := observed(t, relay, relayConfig)
	home := claim(t, New("home"), homeConfig)
	waitLog(t, logs, "peer is up")
	if err := home.Release(); err != nil {
		t.Fatal(err)
	}
	// As if it had been longer ago. Something of it may still be counted.
	await(t, func() error {
		l := relay.live
		l.mu.Lock()
		l.presence[relayConfig.Peers[0].PublicKey].heard = time.Now().Add(-silentAfter)
		l.mu.Unlock()
		if logs.FilterMessageSnippet("peer is silent").Len() == 0 {
			return errors.New("the log does not say that home is silent")
		}
		return nil
	})
	if fields := waitLog(t, logs, "peer is silent"); fields["peer"] != "home" {
		t.Errorf("fields %v", fields)
	}
}

// The most common mistake of all: home's key is not the one that the relay
// knows.
func TestLogSaysThatAnUnknownKeyCalls(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	homeConfig.PrivateKey = NewPrivateKey()
	_, logs := observed(t, New("relay"), relayConfig)
	claim(t, New("home"), homeConfig)
	if fields := waitLog(t, logs, "somebody calls with a key that no peer has"); fields["remote"] == nil {
		t.Errorf("fields %v", fields)
	}
}
