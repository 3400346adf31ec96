package wgtransport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/homeward-relay/homeward/modules/wireguard"
)

// proxyTrap is where HTTP_PROXY and HTTPS_PROXY point in these tests. Nothing
// of ours may ever come there.
var proxyTrap *trap

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "wgtransport")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if proxyTrap, err = newTrap(); err != nil {
		panic(err)
	}
	for name, value := range map[string]string{
		"XDG_DATA_HOME":   dir,
		"XDG_CONFIG_HOME": dir,
		"HTTP_PROXY":      "http://" + proxyTrap.listener.Addr().String(),
		"HTTPS_PROXY":     "http://" + proxyTrap.listener.Addr().String(),
		"NO_PROXY":        "",
	} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	return m.Run()
}

// trap accepts connections, counts them and closes them.
type trap struct {
	listener net.Listener
	hits     atomic.Int64
}

func newTrap() (*trap, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &trap{listener: listener}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.hits.Add(1)
			_ = conn.Close()
		}
	}()
	return t, nil
}

// loopback stands in for the tunnels: it reaches the peer `home`, the address
// 10.77.0.2 and the name `nas.example` at 127.0.0.1, over real sockets, and
// remembers what was dialed.
type loopback struct {
	mu     sync.Mutex
	dials  []string // "tcp home:443"
	conns  []net.Conn
	client []netip.Addr
	closed []net.PacketConn
	hold   chan struct{} // if not nil, dials wait for it
}

func (l *loopback) reaches(host string) bool {
	return slices.Contains([]string{"home", "10.77.0.2", "nas.example"}, host)
}

func (l *loopback) Check(host, tunnel string) error {
	if tunnel != "" && tunnel != "wg0" {
		return fmt.Errorf("there is no tunnel %s", tunnel)
	}
	if strings.Contains(host, "{") || l.reaches(host) {
		return nil
	}
	return fmt.Errorf("%s: %w", host, wireguard.ErrNoPeer)
}

func (l *loopback) Routes(ctx context.Context, address string, options wireguard.DialOptions) ([]wireguard.Route, error) {
	return l.routes(ctx, "udp", address, options)
}

func (l *loopback) routes(ctx context.Context, network, address string, options wireguard.DialOptions) ([]wireguard.Route, error) {
	l.mu.Lock()
	l.dials = append(l.dials, network+" "+address)
	l.client = append(l.client, options.Client)
	l.mu.Unlock()
	if l.hold != nil {
		select {
		case <-l.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if !l.reaches(host) {
		return nil, wireguard.ErrNoPeer
	}
	return []wireguard.Route{{Tunnel: "wg0", Peer: "home", Address: netip.MustParseAddrPort("127.0.0.1:" + port)}}, nil
}

func (l *loopback) Dial(ctx context.Context, network, address string, options wireguard.DialOptions) (net.Conn, wireguard.Route, error) {
	routes, err := l.routes(ctx, network, address, options)
	if err != nil {
		return nil, wireguard.Route{}, fmt.Errorf("dialing %s: %w", address, err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, routes[0].Address.String())
	if err != nil {
		return nil, routes[0], fmt.Errorf("dialing %s: the peer said no: %w", address, err)
	}
	l.mu.Lock()
	l.conns = append(l.conns, conn)
	l.mu.Unlock()
	return conn, routes[0], nil
}

func (l *loopback) Explain(_ context.Context, _ wireguard.Route, err error) error { return err }

func (l *loopback) ListenPacket(_ context.Context, tunnel string) (net.PacketConn, error) {
	if tunnel != "wg0" {
		return nil, errors.New("no such tunnel")
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.closed = append(l.closed, conn)
	l.mu.Unlock()
	return conn, nil
}

func (l *loopback) dialed() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.dials)
}

// tunneled is what the module `wireguard_loopback` dials through. Tests that
// run Caddy run one after the other.
var tunneled *loopback

// overLoopback is Transport as a module that dials through tunneled instead of
// the wireguard app.
type overLoopback struct{ Transport }

func (*overLoopback) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.wireguard_loopback",
		New: func() caddy.Module { return new(overLoopback) },
	}
}

func (t *overLoopback) Provision(ctx caddy.Context) error {
	return t.Origins.At(t.provision(ctx, tunneled), originTransport)
}

func init() { caddy.RegisterModule(new(overLoopback)) }

var _ http.RoundTripper = (*overLoopback)(nil)
