package wgtransport

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// silent accepts connections and says nothing.
func silent(t *testing.T) (port string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
	}()
	return portOf(listener)
}

// TestFailures: what clients get and the log says when home does not answer.
func TestFailures(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	trust := "tls_trust_pool file " + ca.file + "\n"
	closed, mute := freePort(t), silent(t)
	for _, c := range []struct {
		name, upstream, transport, path string
		status                          int
		log                             []string
	}{
		{"refused", "http://home:" + closed, "", "/", 502, []string{"dialing home:" + closed + ": the peer said no", "connection refused"}},
		{"refused with TLS", "https://home:" + closed, trust, "/", 502, []string{"dialing home:" + closed + ": the peer said no"}},
		{"no HTTP/3", "https://home:" + mute, trust + "versions 3\ndial_timeout 300ms", "/", 502, []string{"dialing home:" + mute, "no answer by QUIC", "HTTP/3"}},
		{"mute with TLS", "https://home:" + mute, trust + "tls_timeout 200ms", "/", 502, []string{"making a TLS connection with home:" + mute, "said nothing"}},
		{"no TLS there", "https://home:" + h.plain, trust, "/", 502, []string{"making a TLS connection with home:" + h.plain, "does not look like a TLS handshake"}},
		{"unknown authority", "https://home:" + h.secure, "tls_server_name a.example", "/", 502, []string{"signed by unknown authority", "tls_trust_pool"}},
		{"unknown authority by HTTP/3", "https://home:" + h.secure, "tls_server_name a.example\nversions 3", "/", 502, []string{"signed by unknown authority", "tls_trust_pool"}},
		{"response_header_timeout", "http://home:" + h.plain, "response_header_timeout 200ms", "/never", 504, []string{"timeout awaiting response headers"}},
		{"response_header_timeout by HTTP/2", "https://home:" + h.secure, trust + "response_header_timeout 200ms", "/never", 504, []string{"timeout awaiting response headers"}},
		{"response_header_timeout by HTTP/3", "https://home:" + h.secure, trust + "versions 3\nresponse_header_timeout 200ms", "/never", 504, []string{"timeout awaiting response headers"}},
		{"read_timeout", "http://home:" + h.plain, "read_timeout 200ms", "/never", 502, []string{"i/o timeout"}},
		{"read_timeout by HTTP/2", "https://home:" + h.secure, trust + "read_timeout 200ms", "/never", 502, []string{"i/o timeout"}},
		{"dynamic", "{http.request.header.X-None}:80", "", "/", 502, []string{"dialing :80"}},
		{"placeholder to nowhere", "{http.request.host}:80", "", "/", 502, []string{"no peer has this address"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := newRelay(t)
			r.mustLoad(t, c.upstream, "", c.transport)
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				status, _, _ := r.do(t, method, "a.example", c.path, "body")
				if status != c.status && !(c.status == 502 && status == 504 && strings.HasPrefix(c.name, "read_timeout")) {
					t.Errorf("%s: status %d, want %d", method, status, c.status)
				}
			}
			r.logged(t, append(c.log, `"logger":"http.log.error`)...)
		})
	}
}

// TestRetry: a POST whose dial fails is sent to the next upstream, TLS
// handshakes included, and is sent once.
func TestRetry(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	closed := freePort(t)
	for _, c := range []struct{ name, upstreams, transport string }{
		{"refused", "http://home:" + closed + " http://10.77.0.2:" + h.plain, ""},
		{"no TLS", "https://home:" + h.plain + " https://10.77.0.2:" + h.secure, "tls_trust_pool file " + ca.file},
		{"QUIC", "https://home:" + closed + " https://10.77.0.2:" + h.secure, "dial_timeout 500ms\nversions 3\ntls_trust_pool file " + ca.file},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := newRelay(t)
			r.mustLoad(t, c.upstreams, "lb_policy first\nlb_try_duration 30s\nlb_try_interval 10ms\nfail_duration 2s", c.transport)
			before := len(h.sights())
			status, s, _ := r.do(t, http.MethodPost, "a.example", "/", "body")
			if status != 200 || s.Method != http.MethodPost || s.Body != 4 {
				t.Errorf("status %d, home saw %+v", status, s)
			}
			if n := len(h.sights()) - before; n != 1 {
				t.Errorf("home saw the request %d times", n)
			}
		})
	}
}

// TestHealthCheck: active health checks go through the tunnel, with the Host
// and the header of the PROXY protocol that they need.
func TestHealthCheck(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct {
		name, scheme string
		port         func(*home) string
		transport    string
		proxy        string
		network      string
	}{
		{"http", "http", func(h *home) string { return h.plain }, "", "", "tcp"},
		{"https", "https", func(h *home) string { return h.secure }, "", "", "tcp"},
		{"h3", "https", func(h *home) string { return h.secure }, "versions 3", "", "udp"},
		{"PROXY v1", "https", func(h *home) string { return h.proxied }, "proxy_protocol v1", "v1 LOCAL", "tcp"},
		{"PROXY v2", "https", func(h *home) string { return h.proxied }, "proxy_protocol v2", "v2 LOCAL", "tcp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := startHome(t, loopbackSockets{}, ca, "a.example")
			r, tunnel := newRelay(t)
			transport := c.transport
			if c.scheme == "https" {
				transport += "\ntls_trust_pool file " + ca.file
			}
			upstream := "home:" + c.port(h)
			r.mustLoad(t, c.scheme+"://"+upstream, "health_uri /health\nhealth_interval 50ms\nhealth_headers {\n Host a.example\n}", transport)
			eventually(t, "three health checks", func() bool { return len(h.sights()) >= 3 })
			for _, s := range h.sights() {
				if s.Path != "/health" || s.Host != "a.example" || s.Proxy != c.proxy || c.scheme == "https" && s.SNI != "a.example" {
					t.Errorf("home saw %+v", s)
				}
			}
			if status, _ := r.get(t, "a.example", "/"); status != 200 {
				t.Errorf("status %d", status)
			}
			for _, dial := range tunnel.dialed() {
				if dial != c.network+" "+upstream {
					t.Errorf("dialed %s", dial)
				}
			}
		})
	}
}

// TestUnhealthy: a home that is away is taken out of service, and comes back by
// itself.
func TestUnhealthy(t *testing.T) {
	ca := newAuthority(t)
	port := freePort(t)
	r, _ := newRelay(t)
	r.mustLoad(t, "https://home:"+port, "health_uri /health\nhealth_interval 50ms\nhealth_headers {\n Host a.example\n}", "tls_trust_pool file "+ca.file)
	eventually(t, "status 503", func() bool {
		status, _ := r.get(t, "a.example", "/")
		return status == http.StatusServiceUnavailable
	})
	r.logged(t, "the peer said no", "home:"+port)
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	h.serve(t, listener, h.tls)
	eventually(t, "status 200", func() bool {
		status, _ := r.get(t, "a.example", "/")
		return status == http.StatusOK
	})
}

// TestReload: what is in flight goes on when the configuration is replaced,
// and nothing stays open after it is done.
func TestReload(t *testing.T) {
	ca := newAuthority(t)
	for _, versions := range []string{"1.1", "1.1 2", "3"} {
		t.Run(versions, func(t *testing.T) {
			h := startHome(t, loopbackSockets{}, ca, "a.example")
			r, old := newRelay(t)
			transport := "versions " + versions + "\ntls_trust_pool file " + ca.file
			r.mustLoad(t, "https://home:"+h.secure, "", transport)

			body, write := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.address+"/", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "a.example"
			answers := make(chan sight, 1)
			go func() {
				_, s, err := try(req)
				if err != nil {
					t.Error(err)
				}
				answers <- s
			}()
			part := []byte(strings.Repeat("x", 64<<10))
			if _, err := write.Write(part); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the dial", func() bool { return len(old.dialed()) == 1 })

			tunneled = new(loopback)
			r.mustLoad(t, "https://home:"+h.secure, "header_up X-New yes", transport)
			if _, err := write.Write(part); err != nil {
				t.Fatal(err)
			}
			_ = write.Close()
			if s := <-answers; s.Body != 128<<10 {
				t.Errorf("home saw %+v", s)
			}
			if n := len(old.dialed()); n != 1 {
				t.Errorf("%d dials by the old configuration", n)
			}
			eventually(t, "the old sockets to be closed", func() bool {
				old.mu.Lock()
				defer old.mu.Unlock()
				for _, conn := range old.conns {
					if _, err := conn.Write(nil); err == nil {
						return false
					}
				}
				for _, conn := range old.closed {
					if err := conn.SetDeadline(time.Time{}); err == nil {
						return false
					}
				}
				return true
			})
		})
	}
}

// TestCancel: a client that goes away while home is dialed does not spoil the
// dial for the others who wait for it.
func TestCancel(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	for _, versions := range []string{"1.1", "1.1 2", "3"} {
		t.Run(versions, func(t *testing.T) {
			r, tunnel := newRelay(t)
			tunnel.hold = make(chan struct{})
			r.mustLoad(t, "https://home:"+h.secure, "", map[bool]string{true: "", false: "max_conns_per_host 1\n"}[versions == "3"]+"versions "+versions+"\ntls_trust_pool file "+ca.file)
			request := func(ctx context.Context) <-chan int {
				statuses := make(chan int, 1)
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.address+"/", nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = "a.example"
				go func() {
					status, _, _ := try(req)
					statuses <- status
				}()
				return statuses
			}
			ctx, cancel := context.WithCancel(t.Context())
			first := request(ctx)
			eventually(t, "the dial", func() bool { return len(tunnel.dialed()) == 1 })
			second := request(t.Context())
			r.loggedTimes(t, 2, "selected upstream")
			cancel()
			<-first
			r.logged(t, `"status":499`)
			close(tunnel.hold)
			if status := <-second; status != 200 {
				t.Errorf("status %d", status)
			}
			if n := len(tunnel.dialed()); n != 1 {
				t.Errorf("%d dials", n)
			}
		})
	}
}

// TestProvisionErrors: what can be known before anything is dialed is an error
// of the configuration, with the line of the Caddyfile.
func TestProvisionErrors(t *testing.T) {
	for _, c := range []struct {
		name, upstreams, proxy, transport string
		want                              []string
	}{
		{"address of no peer", "http://10.99.0.1", "", "", []string{"Caddyfile:", "upstream 10.99.0.1:80", "no peer has this address"}},
		{"second address", "http://home http://10.99.0.1", "", "", []string{"upstream 10.99.0.1:80"}},
		{"address of no peer with TLS", "https://10.99.0.1", "", "", []string{"Caddyfile:", "upstream 10.99.0.1:443"}},
		{"unix socket", "unix//run/x.sock", "", "", []string{"Caddyfile:", "over tcp only"}},
		{"udp", "udp/home:53", "", "", []string{"over tcp only"}},
		{"health check without Host", "https://home", "health_uri /", "", []string{"Caddyfile:", "health_headers { Host <name> }", "home:443"}},
		{"health check elsewhere", "https://home", "health_uri /\nhealth_upstream 10.99.0.1:80", "tls_server_name x.example", []string{"health_upstream 10.99.0.1:80"}},
		{"versions 3 without TLS", "http://home", "", "versions 3", []string{"Caddyfile:", "https://"}},
		{"no such file", "https://home", "", "tls_trust_pool file /does/not/exist", []string{"/does/not/exist"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, tunnel := newRelay(t)
			err := r.load(t, c.upstreams, c.proxy, c.transport)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v: no %q in it", err, want)
				}
			}
			if dials := tunnel.dialed(); len(dials) > 0 {
				t.Errorf("dialed %v", dials)
			}
		})
	}
	for _, c := range []struct{ name, upstreams, proxy, transport string }{
		{"health check with Host", "https://home", "health_uri /\nhealth_headers {\n Host a.example\n}", ""},
		{"health check with tls_server_name", "https://home", "health_uri /", "tls_server_name a.example"},
		{"health check of a named upstream", "https://nas.example", "health_uri /", ""},
		{"placeholder", "{http.request.host}:443", "", "tls"},
		{"environment", "{env.HTTP_PROXY}", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := newRelay(t)
			err := r.load(t, c.upstreams, c.proxy, c.transport)
			if (err != nil) != (c.name == "environment") {
				t.Error(err)
			}
		})
	}
}

// TestLimits: options that bound connections do.
func TestLimits(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example", "b.example")
	for _, c := range []struct {
		name, transport string
		requests, dials int
	}{
		{"keepalive off", "keepalive off\nversions 1.1", 3, 3},
		{"keepalive", "versions 1.1", 3, 1},
		{"keepalive 1ms", "keepalive 1ms\nversions 1.1", 3, 3},
		{"max_conns_per_host", "max_conns_per_host 1\nversions 1.1", 3, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, tunnel := newRelay(t)
			r.mustLoad(t, "https://home:"+h.secure, "", c.transport+"\ntls_trust_pool file "+ca.file)
			for i := range c.requests {
				if i > 0 && strings.Contains(c.transport, "1ms") {
					eventually(t, "the connection to be closed", func() bool {
						tunnel.mu.Lock()
						defer tunnel.mu.Unlock()
						_, err := tunnel.conns[i-1].Write(nil)
						return err != nil
					})
				}
				if status, _ := r.get(t, "a.example", "/"); status != 200 {
					t.Fatalf("status %d", status)
				}
			}
			if n := len(tunnel.dialed()); n != c.dials {
				t.Errorf("%d dials, want %d", n, c.dials)
			}
		})
	}
}

// TestClientFamily: the tunnel is told on whose behalf it dials.
func TestClientFamily(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	r, tunnel := newRelay(t)
	r.mustLoad(t, "home:"+h.plain, "", "")
	if status, _ := r.get(t, "a.example", "/"); status != 200 {
		t.Fatalf("status %d", status)
	}
	tunnel.mu.Lock()
	defer tunnel.mu.Unlock()
	if got := fmt.Sprint(tunnel.client); got != "[127.0.0.1]" || !slices.Contains(tunnel.dials, "tcp home:"+h.plain) {
		t.Errorf("dialed %v for %s", tunnel.dials, got)
	}
}

// TestCleanupOfNothing: a module whose Provision failed is cleaned up too.
func TestCleanupOfNothing(t *testing.T) {
	var _ caddy.CleanerUpper = new(Transport)
	if err := new(Transport).Cleanup(); err != nil {
		t.Error(err)
	}
}
