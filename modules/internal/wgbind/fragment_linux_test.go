package wgbind

import (
	"bytes"
	"net"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// It fails when another version of wireguard-go keeps its sockets elsewhere.
func TestSocketsDoNotFragment(t *testing.T) {
	for _, test := range []struct {
		name string
		open func(t *testing.T, b *Bind)
	}{
		{"opened", func(t *testing.T, b *Bind) { open(t, b, 0) }},
		{"prepared before", func(t *testing.T, b *Bind) {
			port, err := b.Prepare(0)
			if err != nil {
				t.Fatal(err)
			}
			open(t, b, port)
		}},
		{"opened again", func(t *testing.T, b *Bind) {
			_, port := open(t, b, 0)
			b.Close()
			open(t, b, port)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := New()
			test.open(t, b)
			if err := b.MayFragment(); err != nil {
				t.Fatal(err)
			}
			sockets, err := socketsOf(b.bind())
			if err != nil || len(sockets) != 2 {
				t.Fatalf("%d sockets: %v", len(sockets), err)
			}
			for _, socket := range sockets {
				level, option, want := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
				if socket.isIPv6 {
					level, option, want = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
				}
				raw, err := socket.conn.SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				raw.Control(func(fd uintptr) {
					if got, err := unix.GetsockoptInt(int(fd), level, option); err != nil || got != want {
						t.Errorf("%s: option is %d (%v), want %d", socket.conn.LocalAddr(), got, err, want)
					}
				})
			}
		})
	}
}

type strangeBind struct{ conn.Bind }

func TestStrangeBind(t *testing.T) {
	if err := forbidFragments(strangeBind{conn.NewStdNetBind()}); err == nil {
		t.Error("a bind whose sockets are not known is said to be set")
	}
}

// One packet that the interface does not carry must not take the others of
// its batch with it, and is no error.
func TestTooLargeIsLostAlone(t *testing.T) {
	namespace := testnet.NewNamespace(t, "bind")
	namespace.IP(t, "link set lo mtu 1400")
	small := func(n byte) []byte { return bytes.Repeat([]byte{n}, 1000) }
	large := func(n byte) []byte { return bytes.Repeat([]byte{n}, 1400) }
	for _, address := range []string{"127.0.0.1", "::1"} {
		for _, test := range []struct {
			name  string
			batch [][]byte
			want  []byte // the first bytes of what arrives
		}{
			{"alone", [][]byte{large(1)}, nil},
			{"first", [][]byte{large(1), small(2), small(3), small(4)}, []byte{2, 3, 4}},
			{"in the middle", [][]byte{small(1), small(2), large(3), small(4), small(5)}, []byte{1, 2, 4, 5}},
			{"several", [][]byte{small(1), large(2), large(3), small(4), small(5), large(6)}, []byte{1, 4, 5}},
			{"all", [][]byte{large(1), large(2), large(3)}, nil},
		} {
			t.Run(address+" "+test.name, func(t *testing.T) {
				b := New()
				t.Cleanup(func() { b.Close() })
				if err := namespace.Do(func() error {
					_, _, err := b.Open(0)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				other := namespace.ListenPacket(t, "udp", net.JoinHostPort(address, "0"))
				endpoint := endpointOf(t, b, other)
				for i, packet := range test.batch {
					test.batch[i] = append(make([]byte, 0, 1<<16), packet...) // as wireguard-go's
				}
				if err := b.Send(test.batch, endpoint); err != nil {
					t.Errorf("sending: %v", err)
				}
				if err := b.Send([][]byte{[]byte("end")}, endpoint); err != nil {
					t.Fatal(err)
				}
				arrived := make(map[byte]bool)
				for {
					packet, _ := mustRead(t, other)
					if string(packet) == "end" {
						break
					}
					arrived[packet[0]] = true
					if len(packet) != 1000 {
						t.Errorf("a packet of %d bytes arrived", len(packet))
					}
				}
				for _, want := range test.want {
					if !arrived[want] {
						t.Errorf("packet %d did not arrive", want)
					}
				}
				if len(arrived) != len(test.want) {
					t.Errorf("%v arrived, want %v", arrived, test.want)
				}
			})
		}
	}
}
