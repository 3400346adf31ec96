package wireguard

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/lingering"
	"github.com/homeward-relay/homeward/modules/internal/relay"
)

// The keepalive of what is accepted inside a tunnel is patient, unless the
// server's options say something else.
func TestKeepAlive(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config net.ListenConfig
		want   net.KeepAliveConfig
	}{
		{"layer4", net.ListenConfig{}, relay.KeepAlive},
		{"http", net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true}}, relay.KeepAlive},
		{"http with keepalive_idle", net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second}},
			net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: relay.KeepAlive.Interval, Count: relay.KeepAlive.Count}},
		{"http with keepalive_interval -1", net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Interval: -1}}, net.KeepAliveConfig{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			shared := newSharedListener(listener)
			use := shared.use(shared.Destruct, keepAlive(tt.config))
			defer use.Close()
			client, err := net.Dial("tcp", use.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			conn, err := use.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw, err := conn.(*lingering.Conn).NetConn().(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			option := func(level, name int) (value int) {
				_ = raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) })
				if err != nil {
					t.Fatal(err)
				}
				return value
			}
			got := net.KeepAliveConfig{Enable: option(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0}
			if got.Enable {
				got.Idle = time.Duration(option(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)) * time.Second
				got.Interval = time.Duration(option(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)) * time.Second
				got.Count = option(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
			}
			if got != tt.want {
				t.Errorf("its keepalive is %+v, want %+v", got, tt.want)
			}
		})
	}
}
