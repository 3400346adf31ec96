package tunnel

import (
	"errors"
	"testing"
	"time"
)

func TestClockNoticesSleep(t *testing.T) {
	began := time.Now()
	at := func(day, running time.Duration) (time.Time, time.Duration) { return began.Add(day), running }
	var c clock
	for i, tt := range []struct {
		day, running, want time.Duration
	}{
		{0, 0, 0},
		{time.Second, time.Second, 0},
		{time.Hour, time.Hour, 0},
		{3 * time.Hour, time.Hour + time.Second, 2*time.Hour - time.Second},
		{3*time.Hour + time.Second, time.Hour + 2*time.Second, 0},
		{0, time.Hour + 3*time.Second, -3*time.Hour - 2*time.Second},
	} {
		if got := c.slept(at(tt.day, tt.running)); got != tt.want {
			t.Errorf("look %d: slept for %v, want %v", i, got, tt.want)
		}
	}
}

// While this end slept the other was started anew and knows of no session. It
// is called at once, before anybody has sent anything.
func TestPeersAreCalledAfterSleep(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay := claim(t, New("relay"), relayConfig)
	first := claim(t, New("home"), homeConfig)
	echoAt(t, first, 7)
	mustEcho(t, dial(t, relay, homeAddress, 7), "before")
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	homeConfig.Peers[0].Endpoint = "" // it does not call by itself
	homeConfig.Peers[0].PersistentKeepalive = 0
	homeConfig.ListenPort = relay.Tunnel().Status()[0].Endpoint.Port()
	second := claim(t, New("home"), homeConfig)

	l := relay.Tunnel().live
	l.callAll(l.statusByKey(), time.Hour)
	await(t, func() error {
		if second.Tunnel().Status()[0].LastHandshake.IsZero() {
			return errors.New("home was not called")
		}
		return nil
	})
}
