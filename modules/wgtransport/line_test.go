package wgtransport

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"
)

// line is what joins home to the relay, and can be cut: then neither hears of
// the other any more, or is told.
type line struct {
	address string // where home finds the relay
	isCut   atomic.Bool
	home    atomic.Pointer[net.UDPAddr]
}

func newLine(t *testing.T, relay string) *line {
	t.Helper()
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	far, err := net.Dial("udp", relay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })

	l := &line{address: near.LocalAddr().String()}
	go l.carry(func(packet []byte) (int, error) {
		n, from, err := near.ReadFromUDP(packet)
		l.home.Store(from)
		return n, err
	}, far.Write)
	go l.carry(far.Read, func(packet []byte) (int, error) { return near.WriteToUDP(packet, l.home.Load()) })
	return l
}

// carry carries packets until the test ends. Those that cannot be sent are lost.
func (l *line) carry(read, write func(packet []byte) (int, error)) {
	packet := make([]byte, 1<<16)
	for {
		n, err := read(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && !l.isCut.Load() {
			_, _ = write(packet[:n])
		}
	}
}

func (l *line) cut() { l.isCut.Store(true) }
