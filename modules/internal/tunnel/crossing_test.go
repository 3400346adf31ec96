package tunnel

import (
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.zx2c4.com/wireguard/device"
)

// The relay makes an initiation for a peer without an endpoint at the one
// moment where that spoils its response to the peer's. Home need not call a
// second time, which it would do only after 5 s.
func TestCrossingHandshakes(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay, home := New("relay"), New("home")

	var once sync.Once
	relayLog := zap.New(details(func(detail string) {
		if !strings.Contains(detail, "Received handshake initiation") {
			return
		}
		once.Do(func() {
			// Made and not sent: with no endpoint, sending fails.
			key := device.NoisePublicKey(relayConfig.Peers[0].PublicKey)
			relay.mu.Lock()
			dev := relay.live.device
			relay.mu.Unlock()
			if _, err := dev.CreateMessageInitiation(dev.LookupPeer(key)); err != nil {
				t.Error(err)
			}
		})
	}))
	var mu sync.Mutex
	calls := 0
	homeLog := zap.New(details(func(detail string) {
		if strings.Contains(detail, "Sending handshake initiation") {
			mu.Lock()
			defer mu.Unlock()
			calls++
		}
	}))

	relayClaim := relay.Claim(relayConfig, relayLog)
	t.Cleanup(func() { relayClaim.Release() })
	if err := relayClaim.Prepare(); err != nil {
		t.Fatal(err)
	}
	homeClaim := home.Claim(homeConfig, homeLog)
	t.Cleanup(func() { homeClaim.Release() })
	if err := homeClaim.Prepare(); err != nil {
		t.Fatal(err)
	}
	echoAt(t, homeClaim, 7)
	mustEcho(t, dial(t, relayClaim, homeAddress, 7), "hello")

	once.Do(func() { t.Error("the handshakes did not cross") })
	mu.Lock()
	defer mu.Unlock()
	if calls != 1 {
		t.Errorf("home called %d times", calls)
	}
}

// details is a zap core that shows each of wireguard-go's messages to a
// function while wireguard-go waits.
type details func(detail string)

func (details) Enabled(zapcore.Level) bool          { return true }
func (d details) With([]zapcore.Field) zapcore.Core { return d }
func (details) Sync() error                         { return nil }
func (d details) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return checked.AddCore(entry, d)
}

func (d details) Write(_ zapcore.Entry, fields []zapcore.Field) error {
	for _, field := range fields {
		if field.Key == "detail" {
			d(field.String)
		}
	}
	return nil
}
