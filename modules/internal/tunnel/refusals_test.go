package tunnel

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// counted waits until wireguard-go has said something so many times, and fails if the log
// says that an unknown key calls.
func counted(t *testing.T, logs *observer.ObservedLogs, detail string, want int) {
	t.Helper()
	await(t, func() error {
		if lines := logs.FilterMessageSnippet("somebody calls").All(); len(lines) > 0 {
			t.Fatalf("the log says that %q, %v", lines[0].Message, lines[0].ContextMap())
		}
		got := 0
		for _, line := range logs.FilterMessage("wireguard-go").All() {
			if said, ok := line.ContextMap()["detail"].(string); ok && strings.Contains(said, detail) {
				got++
			}
		}
		if got < want {
			return fmt.Errorf("%d lines with %q, want %d", got, detail, want)
		}
		return nil
	})
}

// A home sends its initiations again when the answer takes long. The copies are no calls
// with an unknown key.
func TestInitiationsSentAgain(t *testing.T) {
	configs, w := wiredConfigs(t, false)
	configs[1].Peers[0].PersistentKeepalive = 25 * time.Second
	const copies = 3
	w.route = func(from int, datagram []byte, deliver func()) {
		deliver()
		if from == 1 && datagram[0] == device.MessageInitiationType {
			for range copies {
				deliver()
			}
		}
	}
	core, logs := observer.New(zap.DebugLevel)
	ourEnd(t, configs[0], zap.New(core))
	w.start()
	ourEnd(t, configs[1], zap.NewNop())
	counted(t, logs, "Received invalid initiation", copies)
	counted(t, logs, "handshake replay", 1)
}

// A home that has been started anew with a clock that is behind makes initiations that the
// relay takes for old ones.
func TestLogSaysThatAClockIsBehind(t *testing.T) {
	configs, w := wiredConfigs(t, false)
	var mu sync.Mutex
	var calls []func()
	w.route = func(from int, datagram []byte, deliver func()) {
		if from == 1 && datagram[0] == device.MessageInitiationType {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, deliver)
		}
	}
	core, logs := observer.New(zap.DebugLevel)
	tunnel := New("relay")
	relay := tunnel.Claim(configs[0], zap.New(core))
	t.Cleanup(func() { relay.Release() })
	if err := relay.Prepare(); err != nil {
		t.Fatal(err)
	}
	w.start()
	home := stockEnd(t, configs[1])
	made := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(calls)
	}
	for want := 1; want <= 3; want++ {
		before := tai64n.Now()
		await(t, func() error {
			if !tai64n.Now().After(before) {
				return fmt.Errorf("it is still %v", before)
			}
			return nil
		})
		home.peer.ExpireCurrentKeypairs()
		if err := home.peer.SendHandshakeInitiation(false); err != nil {
			t.Fatal(err)
		}
		await(t, func() error {
			if made() < want {
				return fmt.Errorf("%d initiations, want %d", made(), want)
			}
			return nil
		})
	}

	calls[2]() // which the relay had before
	counted(t, logs, "Received handshake initiation", 1)
	calls[0]()
	counted(t, logs, "Received invalid initiation", 1)
	// As if it had been longer ago.
	r := &tunnel.live.refusals
	r.mu.Lock()
	for _, p := range r.peers {
		p.since = p.since.Add(-refusedPatience)
	}
	r.mu.Unlock()
	calls[1]()
	if fields := waitLog(t, logs, "clock is behind"); fields["peer"] != "home" || fields["peer_clock"] == nil {
		t.Errorf("fields %v", fields)
	}
	calls[1]()
	counted(t, logs, "Received invalid initiation", 3)

	// What is known of a peer goes with it.
	gone := *configs[0]
	gone.Peers = nil
	next := tunnel.Claim(&gone, zap.NewNop())
	t.Cleanup(func() { next.Release() })
	if err := next.Prepare(); err != nil {
		t.Fatal(err)
	}
	if err := relay.Release(); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.peers) != 0 {
		t.Errorf("%d peers are remembered that the configuration has no more", len(r.peers))
	}
}

func TestReplays(t *testing.T) {
	const day = 24 * time.Hour
	type step struct {
		after     time.Duration // by this end's clock
		clock     time.Duration // the peer's in a replay
		handshake bool          // instead of a replay
		want      bool
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"copies of one", []step{{0, 0, false, false}, {time.Second, 0, false, false}, {time.Hour, 0, false, false}}},
		{"new ones for a minute", []step{{0, 0, false, false}, {5 * time.Second, 5 * time.Second, false, false}, {time.Minute, time.Minute, false, true}}},
		{"a copy of each", []step{
			{0, 0, false, false}, {0, 0, true, false},
			{2 * time.Minute, 2 * time.Minute, false, false}, {0, 0, true, false},
			{2 * time.Minute, 4 * time.Minute, false, false},
		}},
		{"set right within a minute", []step{{0, 0, false, false}, {30 * time.Second, 30 * time.Second, false, false}, {0, 0, true, false}, {time.Minute, 90 * time.Second, false, false}}},
		{"after a copy of the last that was taken", []step{{0, time.Hour, false, false}, {time.Hour, 0, false, false}, {time.Minute, time.Minute, false, true}}},
		{"once a day", []step{
			{0, 0, false, false}, {time.Minute, time.Minute, false, true}, {time.Hour, time.Hour, false, false},
			{0, 0, true, false}, {0, 0, false, false}, {time.Hour, time.Hour, false, false},
			{day, day, false, true},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r refusals
			peer := new(device.Peer)
			now := time.Now()
			for i, step := range tt.steps {
				now = now.Add(step.after)
				format, args := "%v - ConsumeMessageInitiation: handshake replay @ %v", []any{peer, stampOf(step.clock)}
				if step.handshake {
					format, args = "%v - Received handshake initiation", args[:1]
				}
				behind, clock := r.said(now, format, args)
				if (behind == peer) != step.want || step.want && clock != stampOf(step.clock) {
					t.Errorf("step %d: told %v with %v, want %v", i, behind == peer, clock, step.want)
				}
			}
		})
	}
}

// stampOf is some time after another.
func stampOf(after time.Duration) (stamp tai64n.Timestamp) {
	stamp[4] = byte(after / time.Hour)
	stamp[7] = byte(after % time.Hour / (30 * time.Second))
	stamp[8] = byte(after % (30 * time.Second) / time.Second)
	return stamp
}

func TestStrangers(t *testing.T) {
	var r refusals
	now := time.Now()
	call := func(after time.Duration, remote string, wantCalls int) {
		t.Helper()
		now = now.Add(after)
		if calls, tell := r.stranger(now, remote); calls != wantCalls || tell != (wantCalls > 0) {
			t.Errorf("the log hears of %d calls (%v), want %d", calls, tell, wantCalls)
		}
	}
	call(0, "192.0.2.1:1000", 1)
	for range 719 {
		call(5*time.Second, "192.0.2.1:1001", 0)
	}
	call(5*time.Second, "192.0.2.1:1001", 720)

	// A peer that is set up in the meantime.
	call(time.Second, "[2001:db8::1]:1000", 1)
	call(time.Second, "[2001:db8::1]:2000", 0)
	call(time.Second, "192.0.2.1:1000", 0)

	// They share the hour's line, and one that was away for long is news again.
	call(time.Hour, "[2001:db8::1]:2000", 3)
	call(time.Second, "192.0.2.1:1000", 1)

	// A sweep through addresses is no more than some lines.
	lines := 0
	for i := range 1000 {
		if _, tell := r.stranger(now, fmt.Sprintf("198.51.100.%d:%d", i%256, i)); tell {
			lines++
		}
	}
	if lines > strangersMax {
		t.Errorf("the log hears of %d addresses at once", lines)
	}
	call(time.Hour, "198.51.100.77:1", 1000-lines+1)

	// What wireguard-go drops of a peer's is none of it.
	r.said(now, "%v - ConsumeMessageInitiation: handshake replay @ %v", []any{new(device.Peer), stampOf(0)})
	r.said(now, "%v - ConsumeMessageInitiation: handshake flood", []any{new(device.Peer)})
	call(0, "203.0.113.1:1", 0)
	call(0, "203.0.113.1:1", 0)
	call(0, "203.0.113.1:1", 1)
}
