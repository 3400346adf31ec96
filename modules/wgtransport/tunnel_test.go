package wgtransport

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// The tests below run over real tunnels: the relay is a Caddy with the app
// wireguard, and home is another WireGuard device in this process.

// homeSockets opens sockets inside home's end of the tunnel.
type homeSockets struct {
	claim *tunnel.Claim
	next  uint16 // TCP port
}

func (s *homeSockets) listenTCP(t *testing.T) net.Listener {
	t.Helper()
	s.next++
	listener, err := s.claim.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), s.next))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func (s *homeSockets) listenUDP(t *testing.T, port string) net.PacketConn {
	t.Helper()
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := s.claim.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(number)))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// homeEnd is home's end of a tunnel, which can be down.
type homeEnd struct {
	*homeSockets
	config *tunnel.Config
}

// newTunneledRelay is a relay and a home that is joined with it by a tunnel
// over loopback, both with the given stack. Home is down until it is brought up.
func newTunneledRelay(t *testing.T, stack string) (*relay, *homeEnd) {
	t.Helper()
	trapped := proxyTrap.hits.Load()
	t.Cleanup(func() {
		if hits := proxyTrap.hits.Load() - trapped; hits != 0 {
			t.Errorf("the environment's proxy was used %d times", hits)
		}
	})
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	_ = conn.Close()

	relayKey, homeKey := tunnel.NewPrivateKey(), tunnel.NewPrivateKey()
	t.Setenv("WGTRANSPORT_TEST_KEY", relayKey.Base64())
	r := prepareRelay(t, "wireguard", fmt.Sprintf(`wireguard wg0 {
		private_key {env.WGTRANSPORT_TEST_KEY}
		address 10.77.0.1/24 fd77::1/64
		listen_port %d
		stack %s
		peer home {
			public_key %s
			allowed_ips 10.77.0.2/32 fd77::2/128
		}
	}`, port, stack, homeKey.Public()))
	end := &homeEnd{config: &tunnel.Config{
		PrivateKey: homeKey,
		Addresses:  []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24"), netip.MustParsePrefix("fd77::2/64")},
		MTU:        1280,
		Peers: []tunnel.Peer{{
			Name:                "relay",
			PublicKey:           relayKey.Public(),
			AllowedIPs:          []netip.Prefix{netip.MustParsePrefix("10.77.0.1/32"), netip.MustParsePrefix("fd77::1/128")},
			Endpoint:            netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String(),
			PersistentKeepalive: time.Second,
		}},
	}}
	if stack != "auto" {
		end.config.Stack = tunnel.StackChoice(stack)
	}
	return r, end
}

func (e *homeEnd) up(t *testing.T) {
	t.Helper()
	device := tunnel.New("home")
	claim := device.Claim(e.config, zap.NewNop())
	if err := claim.Prepare(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = claim.Release()
		_ = device.Destruct()
	})
	e.homeSockets = &homeSockets{claim: claim, next: 8000}
}

func TestTunnelVersions(t *testing.T) {
	ca := newAuthority(t)
	r, end := newTunneledRelay(t, "auto")
	r.mustLoad(t, "home:1", "", "")
	end.up(t)
	h := startHome(t, end, ca, "a.example", "b.example")
	trust := "tls_trust_pool file " + ca.file + "\n"
	for _, c := range []struct{ name, upstream, transport, proto string }{
		{"1.1", "http://home:" + h.plain, "", "HTTP/1.1"},
		{"h2c", "h2c://home:" + h.plain, "", "HTTP/2.0"},
		{"1.1 with TLS", "https://home:" + h.secure, trust + "versions 1.1", "HTTP/1.1"},
		{"2", "https://home:" + h.secure, trust, "HTTP/2.0"},
		{"2 by IPv4", "https://10.77.0.2:" + h.secure, trust, "HTTP/2.0"},
		{"2 by IPv6", "https://[fd77::2]:" + h.secure, trust, "HTTP/2.0"},
		{"2 by tunnel", "https://home:" + h.secure, trust, "HTTP/2.0"},
		{"2 with PROXY", "https://home:" + h.proxied, trust + "proxy_protocol v2", "HTTP/2.0"},
		{"3", "https://home:" + h.secure, trust + "versions 3", "HTTP/3.0"},
		{"3 by IPv6", "https://[fd77::2]:" + h.secure, trust + "versions 3", "HTTP/3.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if r.name = "wireguard"; strings.HasSuffix(c.name, "by tunnel") {
				r.name = "wireguard wg0"
			}
			r.mustLoad(t, c.upstream, "", c.transport)
			var group sync.WaitGroup
			for i := range 12 {
				group.Go(func() {
					host := []string{"a.example", "b.example"}[i%2]
					status, s, _ := r.do(t, http.MethodPost, host, "/", strings.Repeat("x", 300_000))
					if status != 200 || s.Proto != c.proto || s.Host != host || s.Body != 300_000 {
						t.Errorf("status %d, home saw %+v", status, s)
					}
					if strings.HasPrefix(c.upstream, "https") && s.SNI != host {
						t.Errorf("SNI %q for %s", s.SNI, host)
					}
				})
			}
			group.Wait()
			if strings.HasPrefix(c.upstream, "https") {
				if status, _ := r.get(t, "c.example", "/"); status != http.StatusBadGateway {
					t.Errorf("a name without a certificate: status %d", status)
				}
				r.logged(t, "c.example", "wrong.invalid", `"status":502`)
			}
		})
	}
	t.Run("upgrade", func(t *testing.T) {
		r.mustLoad(t, "https://home:"+h.secure, "stream_close_delay 1m", trust)
		conn, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(conn, "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
		reader := bufio.NewReader(conn)
		if resp, err := http.ReadResponse(reader, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%+v %v", resp, err)
		}
		for i := range 3 {
			if i == 1 { // it outlives a reload
				r.mustLoad(t, "https://home:"+h.secure, "stream_close_delay 2m", trust)
			}
			fmt.Fprintf(conn, "line %d\n", i)
			if line, err := reader.ReadString('\n'); err != nil || line != fmt.Sprintf("home heard line %d\n", i) {
				t.Fatalf("%q %v", line, err)
			}
		}
		conn.Close()
		upgradesEnd(t)
	})
	t.Run("health check", func(t *testing.T) {
		for _, versions := range []string{"1.1", "1.1 2", "3"} {
			before := len(h.sights())
			r.mustLoad(t, "https://home:"+h.secure, "health_uri /health\nhealth_interval 20ms\nhealth_headers {\n Host b.example\n}", trust+"versions "+versions)
			eventually(t, "health checks", func() bool { return len(h.sights()) > before+2 })
			for _, s := range h.sights()[before:] {
				if s.Path != "/health" || s.Host != "b.example" || s.SNI != "b.example" {
					t.Errorf("home saw %+v", s)
				}
			}
			if status, _ := r.get(t, "a.example", "/"); status != 200 {
				t.Errorf("status %d", status)
			}
		}
	})
	t.Run("retry", func(t *testing.T) {
		r.mustLoad(t, "http://[fd77::2]:9 http://10.77.0.2:"+h.plain, "lb_policy first\nlb_try_duration 5s\nlb_try_interval 10ms\nfail_duration 10s", "")
		before := len(h.sights())
		status, s, _ := r.do(t, http.MethodPost, "a.example", "/", "body")
		posts := 0
		for _, sight := range h.sights()[before:] {
			if sight.Method == http.MethodPost { // and not a last health check
				posts++
			}
		}
		if status != 200 || s.Body != 4 || posts != 1 {
			t.Errorf("status %d, home saw %+v, %d times", status, s, posts)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r.mustLoad(t, "http://home:9", "", "")
		if status, _, _ := r.do(t, http.MethodPost, "a.example", "/", "body"); status != http.StatusBadGateway {
			t.Errorf("status %d", status)
		}
		r.logged(t, "10.77.0.2:9 refused the connection", `"status":502`)
	})
	t.Run("reload", func(t *testing.T) {
		for _, versions := range []string{"1.1", "1.1 2", "3"} {
			r.mustLoad(t, "https://home:"+h.secure, "header_up X-Before "+strconv.Quote(versions), trust+"versions "+versions)
			body, write := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.address+"/", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "a.example"
			done := make(chan sight, 1)
			go func() {
				_, s, err := try(req)
				if err != nil {
					t.Error(err)
				}
				done <- s
			}()
			// More than the sockets' buffers hold: so the relay has accepted the
			// connection, which in the listener's backlog a reload would reset.
			part := bytes.Repeat([]byte("x"), 16<<20)
			_, _ = write.Write(part)
			r.mustLoad(t, "https://home:"+h.secure, "header_up X-After "+strconv.Quote(versions), trust+"versions "+versions)
			_, _ = write.Write(part)
			_ = write.Close()
			if s := <-done; s.Body != 32<<20 {
				t.Errorf("versions %s: home saw %+v", versions, s)
			}
		}
	})
}

// TestHomeAway: what is said while home is away, and that all is well again
// when it is back.
func TestHomeAway(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct{ versions, log string }{
		{"1.1 2", "peer home has not called since the tunnel came up"},
		{"3", "no answer by QUIC"},
	} {
		t.Run(c.versions, func(t *testing.T) {
			r, end := newTunneledRelay(t, "auto")
			r.mustLoad(t, "https://home:8001", "", "dial_timeout 500ms\nversions "+c.versions+"\ntls_trust_pool file "+ca.file)
			start := time.Now()
			status, _, _ := r.do(t, http.MethodPost, "a.example", "/", "body")
			if took := time.Since(start); status != http.StatusBadGateway || took < 400*time.Millisecond || took > 5*time.Second {
				t.Errorf("status %d after %s", status, took)
			}
			r.logged(t, "dialing home:8001", c.log, `"status":502`)
			end.up(t)
			h := startHome(t, end, ca, "a.example")
			if h.secure != "8001" {
				t.Fatalf("home listens on %s", h.secure)
			}
			eventually(t, "status 200", func() bool {
				status, _ := r.get(t, "a.example", "/")
				return status == 200
			})
		})
	}
}

// TestTunnelErrors: errors of the configuration, with the real app.
func TestTunnelErrors(t *testing.T) {
	r, _ := newTunneledRelay(t, "auto")
	for _, c := range []struct{ name, upstream, arg, want string }{
		{"address of no peer", "http://10.99.0.1", "", "10.99.0.1 is in no peer's allowed_ips"},
		{"no peer", "http://hume", "", "hume is neither a peer's name"},
		{"no tunnel", "http://home", "wg9", "there is no tunnel wg9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.name = strings.TrimSpace("wireguard " + c.arg)
			err := r.load(t, c.upstream, "", "")
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "Caddyfile:") {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	t.Run("no app", func(t *testing.T) {
		r.name, r.globals = "wireguard", ""
		if err := r.load(t, "http://home", "", ""); err == nil || !strings.Contains(err.Error(), "wireguard block") {
			t.Errorf("error %v", err)
		}
	})
}
