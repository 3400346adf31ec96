package wgbind

import (
	"fmt"
	"net"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// What is sent by IPv6 arrives, whatever has been sent by IPv4 before, from the first port
// and from the next ones.
func TestFamiliesInTurn(t *testing.T) {
	testnet.Need(t)
	namespace := testnet.NewNamespace(t, "families")
	// Whole addresses: of ::1 the first bytes are enough.
	namespace.IP(t, "addr add 192.0.2.7/32 dev lo", "addr add 2001:db8::7/128 dev lo nodad", "link set lo up")
	others := []*net.UDPConn{namespace.ListenPacket(t, "udp", "192.0.2.7:0"), namespace.ListenPacket(t, "udp", "[2001:db8::7]:0")}
	if err := namespace.Do(func() error {
		b := New()
		defer b.Close()
		for _, prepared := range []bool{false, true, false} {
			port, err := uint16(0), error(nil)
			if prepared {
				if port, err = b.Prepare(0); err != nil {
					return err
				}
			}
			b.Close()
			if _, _, err := b.Open(port); err != nil {
				return err
			}
			for n := range 10 {
				for _, other := range others {
					sent := fmt.Sprint("datagram ", n)
					if err := b.Send([][]byte{[]byte(sent)}, endpointOf(t, b, other)); err != nil {
						return err
					}
					if got, _ := mustRead(t, other); string(got) != sent {
						return fmt.Errorf("%q came, want %q", got, sent)
					}
				}
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
