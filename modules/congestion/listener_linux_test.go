package congestion

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/pires/go-proxyproto"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/lingering"
	"github.com/homeward-relay/homeward/modules/internal/publictcp"
)

// opaque is a connection of a wrapper that does not say what is in it.
type opaque struct{ net.Conn }

type opaqueListener struct{ net.Listener }

func (l opaqueListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return opaque{conn}, err
}

func TestAccept(t *testing.T) {
	content, err := os.ReadFile("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, algorithm string
		near            bool // the client is
		inner           func(net.Listener) net.Listener
		unix            bool
		want            string
		logged          int
	}{
		{name: "default", want: "bbr"},
		{name: "default, near", near: true, want: begin},
		{name: "named, near", near: true, algorithm: "bbr", want: "bbr"},
		{name: "named", algorithm: "reno", want: "reno"},
		{name: "after tls", inner: func(l net.Listener) net.Listener { return tls.NewListener(l, new(tls.Config)) }, want: "bbr"},
		{
			name: "after proxy_protocol",
			inner: func(l net.Listener) net.Listener {
				return &proxyproto.Listener{Listener: l}
			},
			want: "bbr",
		},
		{
			name: "after both",
			inner: func(l net.Listener) net.Listener {
				return tls.NewListener(&proxyproto.Listener{Listener: l}, new(tls.Config))
			},
			want: "bbr",
		},
		{
			name:   "after a wrapper that says nothing",
			inner:  func(l net.Listener) net.Listener { return opaqueListener{l} },
			want:   begin,
			logged: 1,
		},
		{name: "Unix socket", unix: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want != "" && !slices.Contains(strings.Fields(string(content)), tt.want) {
				t.Skipf("this host does not allow %s", tt.want)
			}
			defer func(before time.Duration) { publictcp.Nearby = before }(publictcp.Nearby)
			publictcp.Nearby = 0
			if tt.near {
				publictcp.Nearby = time.Minute
			}
			// The logger of a module's context goes to Caddy's default log.
			w := &ListenerWrapper{Algorithm: tt.algorithm}
			ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
			defer cancel()
			if err := w.Provision(ctx); err != nil {
				t.Fatal(err)
			}
			core, log := observer.New(zap.DebugLevel)
			w.logger = zap.New(core)

			below := &noting{Listener: listen(t, tt.unix)}
			inner := net.Listener(below)
			if tt.inner != nil {
				inner = tt.inner(inner)
			}
			between := &noting{Listener: inner}
			wrapped := w.WrapListener(between)
			for range 2 {
				client, err := net.Dial(wrapped.Addr().Network(), wrapped.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				conn, err := wrapped.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer below.last.Close()
				same := conn
				if lingers, ok := conn.(*lingering.Conn); ok && tt.inner == nil && !tt.unix {
					same = lingers.NetConn()
				}
				if same != between.last || same == conn && tt.inner == nil && !tt.unix {
					t.Errorf("a %T was accepted and became a %T", between.last, conn)
				}
				if got := algorithmOf(t, below.last); got != tt.want {
					t.Errorf("the connection has %q, want %q", got, tt.want)
				}
			}
			if log.Len() != tt.logged {
				t.Errorf("it logged %v", log.All())
			}

			wrapped.Close()
			if _, err := wrapped.Accept(); err == nil {
				t.Error("a closed listener accepts")
			}
		})
	}
}

// noting is a listener that remembers what it accepted last.
type noting struct {
	net.Listener
	last net.Conn
}

func (l *noting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	l.last = conn
	return conn, err
}

// begin is the congestion control of connections to a listener of listen's. It
// is in every Linux, and its default nowhere.
const begin = "reno"

func listen(t *testing.T, unixSocket bool) net.Listener {
	t.Helper()
	network, address := "tcp", "127.0.0.1:0"
	var config net.ListenConfig
	if unixSocket {
		network, address = "unix", filepath.Join(t.TempDir(), "socket")
	} else {
		config.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			if e := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, begin)
			}); e != nil {
				return e
			}
			return err
		}
	}
	listener, err := config.Listen(context.Background(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// algorithmOf is the congestion control of a TCP connection, and empty for all
// others.
func algorithmOf(t *testing.T, conn net.Conn) (algorithm string) {
	t.Helper()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return ""
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if algorithm, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return algorithm
}
