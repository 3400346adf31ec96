package l4wireguard

import (
	"crypto/tls"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/publictcp"
)

func TestTunePublic(t *testing.T) {
	allowed, err := os.ReadFile("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(strings.Fields(string(allowed)), publictcp.BBR) {
		t.Skip("this host does not allow bbr")
	}
	asItIs := func(conn net.Conn) net.Conn { return conn }
	for _, tt := range []struct {
		name   string
		wrap   func(net.Conn) net.Conn
		nearby time.Duration
		want   string
	}{
		{"plain", asItIs, 0, publictcp.BBR},
		{"tls in layer4", func(conn net.Conn) net.Conn { return tls.Server(conn, new(tls.Config)) }, 0, publictcp.BBR},
		{"layer4 in layer4", func(conn net.Conn) net.Conn { return layer4.WrapConnection(conn, nil, zap.NewNop()) }, 0, publictcp.BBR},
		{"a client that is near", asItIs, time.Minute, "reno"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func(before time.Duration) { publictcp.Nearby = before }(publictcp.Nearby)
			publictcp.Nearby = tt.nearby
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			client, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			conn, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw, err := conn.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}

			// Whatever this host's is.
			_ = raw.Control(func(fd uintptr) {
				if err := unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"); err != nil {
					t.Error(err)
				}
			})
			h := &Handler{logger: zap.NewNop()}
			h.tunePublic(layer4.WrapConnection(tt.wrap(conn), nil, zap.NewNop()))
			_ = raw.Control(func(fd uintptr) {
				if got, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || got != tt.want {
					t.Errorf("the connection has %q (%v), want %q", got, err, tt.want)
				}
				if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL); err != nil || got != 60 {
					t.Errorf("it is probed every %d s when idle (%v), want 60", got, err)
				}
				if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); err != nil || got <= 0 {
					t.Errorf("its unsent bytes are bounded at %d (%v)", got, err)
				}
			})
		})
	}
}
