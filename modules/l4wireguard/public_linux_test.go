package l4wireguard

import (
	"crypto/tls"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

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
	for _, tt := range []struct {
		name string
		wrap func(net.Conn) net.Conn
	}{
		{"plain", func(conn net.Conn) net.Conn { return conn }},
		{"tls in layer4", func(conn net.Conn) net.Conn { return tls.Server(conn, new(tls.Config)) }},
		{"layer4 in layer4", func(conn net.Conn) net.Conn { return layer4.WrapConnection(conn, nil, zap.NewNop()) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
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
				if got, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || got != publictcp.BBR {
					t.Errorf("the connection has %q (%v)", got, err)
				}
			})
		})
	}
}
