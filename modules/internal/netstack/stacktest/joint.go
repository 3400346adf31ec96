package stacktest

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// joint connects the devices of a pair until the test ends.
type joint func(t testing.TB, p *pair)

// headroom is the offset that wireguard-go reads and writes packets with.
const headroom = device.MessageTransportHeaderSize

// sizeLimit is the most bytes that a packet of a device may have.
type sizeLimit struct{ bytes atomic.Int64 }

func newSizeLimit(bytes int) *sizeLimit {
	l := new(sizeLimit)
	l.set(bytes)
	return l
}

func (l *sizeLimit) set(bytes int) { l.bytes.Store(int64(bytes)) }

func (l *sizeLimit) allows(size int) bool {
	limit := l.bytes.Load()
	return limit == 0 || int64(size) <= limit
}

// joinInMemory carries packets from each device to the other, without loss.
func joinInMemory(t testing.TB, p *pair) {
	var done sync.WaitGroup
	pump := func(from, to tun.Device, name string) {
		defer done.Done()
		bufs, sizes := make([][]byte, from.BatchSize()), make([]int, from.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, headroom+1<<16)
		}
		packets := make([][]byte, 0, len(bufs))
		for {
			n, err := from.Read(bufs, sizes, headroom)
			if err != nil {
				return
			}
			packets = packets[:0]
			for i := range n {
				if !p.limit.allows(sizes[i]) {
					t.Errorf("a packet from %s has %d bytes", name, sizes[i])
				}
				packets = append(packets, bufs[i][:headroom+sizes[i]])
			}
			// The other side may be closed before this one.
			to.Write(packets, headroom)
		}
	}
	done.Add(2)
	go pump(p.here.Device(), p.there.Device(), "here")
	go pump(p.there.Device(), p.here.Device(), "there")
	t.Cleanup(func() {
		p.here.Close()
		p.there.Close()
		done.Wait()
	})
}

// joinByWireGuard makes the devices the two ends of a WireGuard tunnel over
// loopback. Every address is the other's.
func joinByWireGuard(t testing.TB, p *pair) {
	hereKey, thereKey := newKey(t), newKey(t)
	here := device.NewDevice(p.here.Device(), conn.NewDefaultBind(), quietLogger())
	t.Cleanup(here.Close)
	there := device.NewDevice(p.there.Device(), conn.NewDefaultBind(), quietLogger())
	t.Cleanup(there.Close)
	configureWireGuard(t, here, hereKey, thereKey, "")
	if err := here.Up(); err != nil {
		t.Fatal(err)
	}
	configureWireGuard(t, there, thereKey, hereKey, fmt.Sprintf("127.0.0.1:%d", listenPort(t, here)))
	if err := there.Up(); err != nil {
		t.Fatal(err)
	}
	configureWireGuard(t, here, hereKey, thereKey, fmt.Sprintf("127.0.0.1:%d", listenPort(t, there)))
}

func quietLogger() *device.Logger {
	return &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
}

func newKey(t testing.TB) *ecdh.PrivateKey {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func configureWireGuard(t testing.TB, d *device.Device, own, peer *ecdh.PrivateKey, endpoint string) {
	config := fmt.Sprintf("private_key=%s\npublic_key=%s\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
		hex.EncodeToString(own.Bytes()), hex.EncodeToString(peer.PublicKey().Bytes()))
	if endpoint != "" {
		config += "endpoint=" + endpoint + "\n"
	}
	if err := d.IpcSet(config); err != nil {
		t.Fatal(err)
	}
}

// listenPort returns the UDP port of a device that is up.
func listenPort(t testing.TB, d *device.Device) int {
	state, err := d.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(state) {
		var port int
		if n, _ := fmt.Sscanf(line, "listen_port=%d", &port); n == 1 {
			return port
		}
	}
	t.Fatal("device has no listen port")
	return 0
}
