package wgtransport

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// TestVersions: every version of HTTP reaches home, and by nothing but the
// tunnel.
func TestVersions(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	trust := "tls_trust_pool file " + ca.file + "\n"
	for _, c := range []struct {
		name, scheme, port, transport string
		proto, dial                   string
	}{
		{"default with TLS", "https", h.secure, trust, "HTTP/2.0", "tcp"},
		{"1.1 with TLS", "https", h.secure, trust + "versions 1.1", "HTTP/1.1", "tcp"},
		{"2 with TLS", "https", h.secure, trust + "versions 2", "HTTP/2.0", "tcp"},
		{"3", "https", h.secure, trust + "versions 3", "HTTP/3.0", "udp"},
		{"default", "http", h.plain, "", "HTTP/1.1", "tcp"},
		{"h2c by scheme", "h2c", h.plain, "", "HTTP/2.0", "tcp"},
		{"h2c by option", "http", h.plain, "versions h2c", "HTTP/2.0", "tcp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, tunnel := newRelay(t)
			r.mustLoad(t, c.scheme+"://home:"+c.port, "", c.transport)
			status, s, _ := r.do(t, http.MethodPost, "a.example", "/", strings.Repeat("x", 100_000))
			if status != 200 || s.Proto != c.proto || s.Host != "a.example" || s.Body != 100_000 || s.Forwarded != "127.0.0.1" {
				t.Fatalf("status %d, home saw %+v", status, s)
			}
			if c.scheme == "https" && s.SNI != "a.example" {
				t.Errorf("SNI was %q", s.SNI)
			}
			for _, dial := range tunnel.dialed() {
				if dial != c.dial+" home:"+c.port {
					t.Errorf("dialed %s", dial)
				}
			}
			if len(tunnel.dialed()) == 0 {
				t.Error("nothing was dialed through the tunnel")
			}
		})
	}
}

// TestEnvironmentProxy shows that the trap catches Caddy's own transport, so
// that its silence in all other tests means something.
func TestEnvironmentProxy(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	own := new(reverseproxy.HTTPTransport)
	if err := own.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	before := proxyTrap.hits.Load()
	req := httptest.NewRequest(http.MethodGet, "http://home.example:80/", nil)
	req = req.WithContext(context.WithValue(req.Context(), caddy.ReplacerCtxKey, caddy.NewReplacer()))
	if resp, err := own.RoundTrip(req); err == nil {
		_ = resp.Body.Close()
	}
	eventually(t, "the trap", func() bool { return proxyTrap.hits.Load() > before })
}

// TestVirtualHosts: two names at home share no connection, whatever is asked
// at once, and each is verified for itself.
func TestVirtualHosts(t *testing.T) {
	ca := newAuthority(t)
	for _, versions := range []string{"1.1", "1.1 2", "3"} {
		t.Run(versions, func(t *testing.T) {
			h := startHome(t, loopbackSockets{}, ca, "a.example", "b.example")
			r, _ := newRelay(t)
			r.mustLoad(t, "https://home:"+h.secure, "", "versions "+versions+"\ntls_trust_pool file "+ca.file)
			var group sync.WaitGroup
			for i := range 40 {
				group.Go(func() {
					host := []string{"a.example", "b.example", "A.example:8443", "c.example"}[i%4]
					status, s := r.get(t, host, "/")
					name := strings.ToLower(hostname(host))
					switch {
					case name == "c.example":
						if status != http.StatusBadGateway {
							t.Errorf("%s: status %d", host, status)
						}
					case status != 200 || s.Host != host || s.SNI != name:
						t.Errorf("%s: status %d, home saw %+v", host, status, s)
					}
				})
			}
			group.Wait()
			r.logged(t, `"status":502`, "making a TLS connection with home:"+h.secure, "c.example", "wrong.invalid", "set tls_server_name")

			names := map[int64]string{}
			for _, s := range h.sights() {
				if s.Host == "c.example" {
					t.Errorf("a request for %s arrived: %+v", s.Host, s)
				}
				if versions != "3" {
					if before, ok := names[s.Conn]; ok && before != s.SNI {
						t.Errorf("connection %d served %s and %s", s.Conn, before, s.SNI)
					}
					names[s.Conn] = s.SNI
				}
			}
		})
	}
}

// TestServerName: what the certificate is verified for.
func TestServerName(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example", "b.example", "nas.example")
	for _, c := range []struct {
		name, upstream, proxy, transport, host string
		status                                 int
		sni, sent                              string
		log                                    []string
	}{
		{name: "peer", upstream: "home", host: "a.example", status: 200, sni: "a.example", sent: "a.example"},
		{name: "address", upstream: "10.77.0.2", host: "a.example", status: 200, sni: "a.example", sent: "a.example"},
		{name: "another name", upstream: "nas.example", host: "a.example", status: 200, sni: "nas.example", sent: "a.example"},
		{name: "fixed", upstream: "home", transport: "tls_server_name b.example", host: "a.example", status: 200, sni: "b.example", sent: "a.example"},
		{name: "placeholder", upstream: "home", transport: "tls_server_name {http.request.host}", host: "b.example:99", status: 200, sni: "b.example", sent: "b.example:99"},
		{name: "empty placeholder", upstream: "home", transport: "tls_server_name {http.request.header.X-None}", host: "a.example", status: 502, log: []string{"is empty for this request"}},
		{name: "header_up Host", upstream: "home", proxy: "header_up Host b.example", host: "a.example", status: 200, sni: "b.example", sent: "b.example"},
		{name: "header_up Host, fixed", upstream: "home", proxy: "header_up Host z.example", transport: "tls_server_name a.example", host: "b.example", status: 200, sni: "a.example", sent: "z.example"},
		{name: "Host of upstream", upstream: "home", proxy: "header_up Host {upstream_hostport}", host: "a.example", status: 502, log: []string{`for \"home\"`, "tls_server_name"}},
		{name: "no Host", upstream: "home", proxy: "header_up -Host", host: "a.example", status: 502, log: []string{"the request names no host", "set tls_server_name"}},
		{name: "no Host, fixed", upstream: "home", proxy: "header_up -Host", transport: "tls_server_name a.example", host: "a.example", status: 200, sni: "a.example", sent: "home:" + h.secure},
		{name: "wrong", upstream: "home", host: "c.example", status: 502, log: []string{"certificate is valid for wrong.invalid, not c.example"}},
		{name: "skip verify", upstream: "home", transport: "tls_insecure_skip_verify", host: "c.example", status: 200, sni: "c.example", sent: "c.example"},
		{name: "by address", upstream: "home", transport: "tls_insecure_skip_verify", host: "192.0.2.1", status: 200, sni: "", sent: "192.0.2.1"},
	} {
		for _, versions := range []string{"1.1 2", "3"} {
			t.Run(c.name+" "+versions, func(t *testing.T) {
				r, _ := newRelay(t)
				r.mustLoad(t, "https://"+c.upstream+":"+h.secure, c.proxy, fmt.Sprintf("versions %s\ntls_trust_pool file %s\n%s", versions, ca.file, c.transport))
				status, s := r.get(t, c.host, "/")
				if status != c.status || s.SNI != c.sni || s.Host != c.sent {
					t.Errorf("status %d, home saw %+v", status, s)
				}
				if c.log != nil {
					r.logged(t, append(c.log, `"status":502`)...)
				}
			})
		}
	}
}

// TestRedirect: home's absolute redirects are right for the client.
func TestRedirect(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	r, _ := newRelay(t)
	r.mustLoad(t, "https://home:"+h.secure, "", "tls_trust_pool file "+ca.file)
	status, _, header := r.do(t, http.MethodGet, "a.example", "/redirect", "")
	if status != http.StatusFound || header.Get("Location") != "https://a.example/there" {
		t.Errorf("status %d, Location %q", status, header.Get("Location"))
	}
}

// TestUpgrade: an upgraded connection works whatever version plain requests
// have.
func TestUpgrade(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	trust := "tls_trust_pool file " + ca.file + "\n"
	for _, c := range []struct{ name, upstream, transport string }{
		{"http", "http://home:" + h.plain, ""},
		{"https", "https://home:" + h.secure, trust},
		{"https with PROXY", "https://home:" + h.proxied, trust + "proxy_protocol v2"},
		{"h2c", "h2c://home:" + h.plain, ""},
		{"h3", "https://home:" + h.secure, trust + "versions 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, tunnel := newRelay(t)
			r.mustLoad(t, c.upstream, "", c.transport)
			if status, _ := r.get(t, "a.example", "/"); status != 200 { // a pooled HTTP/2 connection must not serve the upgrade
				t.Fatalf("status %d", status)
			}
			conn, err := net.Dial("tcp", r.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprint(conn, "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
			reader := bufio.NewReader(conn)
			resp, err := http.ReadResponse(reader, nil)
			if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("%+v %v", resp, err)
			}
			for i := range 3 {
				fmt.Fprintf(conn, "line %d\n", i)
				line, err := reader.ReadString('\n')
				if err != nil || line != fmt.Sprintf("home heard line %d\n", i) {
					t.Fatalf("%q %v", line, err)
				}
			}
			conn.Close()
			upgradesEnd(t)
			if dials := tunnel.dialed(); !slices.Contains(dials, "tcp "+strings.SplitN(c.upstream, "://", 2)[1]) {
				t.Errorf("dialed %v", dials)
			}
		})
	}
}

// TestProxyProtocol: home learns the client's address, by a connection of the
// client's own.
func TestProxyProtocol(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example", "b.example")
	for _, version := range []string{"v1", "v2"} {
		for _, versions := range []string{"1.1", "1.1 2"} {
			t.Run(version+" "+versions, func(t *testing.T) {
				r, tunnel := newRelay(t)
				r.globals = "servers {\n trusted_proxies static 127.0.0.1\n}"
				r.mustLoad(t, "https://home:"+h.proxied, "", fmt.Sprintf("versions %s\nproxy_protocol %s\ntls_trust_pool file %s", versions, version, ca.file))
				conns := map[int64]string{}
				for i := range 12 {
					client := []string{"192.0.2.7", "2001:db8::7", "192.0.2.8"}[i%3]
					host := []string{"a.example", "b.example"}[i/6]
					status, s := r.getFor(t, host, client)
					if status != 200 || s.Proxy != version+" PROXY "+client && s.Proxy != "v"+version[1:]+" PROXY "+client {
						t.Errorf("%s for %s: status %d, %+v", host, client, status, s)
					}
					if before, ok := conns[s.Conn]; ok && before != client+host {
						t.Errorf("connection %d served %s and %s", s.Conn, before, client+host)
					}
					conns[s.Conn] = client + host
				}
				if len(conns) != 6 {
					t.Errorf("%d connections for 3 clients and 2 names", len(conns))
				}
				if n := len(tunnel.dialed()); n != 6 {
					t.Errorf("%d dials", n)
				}
			})
		}
	}
}

func (r *relay) getFor(t *testing.T, host, client string) (int, sight) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+r.address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	req.Header.Set("X-Forwarded-For", client)
	return r.send(t, req)
}

// TestPlainProxyProtocol: and without TLS.
func TestPlainProxyProtocol(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	first := make(chan string, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		reader := bufio.NewReader(conn)
		line, _ := reader.ReadString('\n')
		first <- line
		if req, err := http.ReadRequest(reader); err == nil {
			_, _ = io.Copy(io.Discard, req.Body)
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	}()
	r, _ := newRelay(t)
	r.mustLoad(t, "home:"+portOf(listener), "", "proxy_protocol v1")
	if status, _ := r.get(t, "a.example", "/"); status != 200 {
		t.Errorf("status %d", status)
	}
	if line := <-first; line != "PROXY TCP4 127.0.0.1 127.0.0.1 0 0\r\n" {
		t.Errorf("header %q", line)
	}
}

// TestClientCertificate: home can ask who the relay is.
func TestClientCertificate(t *testing.T) {
	ca := newAuthority(t)
	certificate, key := ca.files(t, "relay.example")
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	for _, versions := range []string{"1.1", "3"} {
		r, _ := newRelay(t)
		r.mustLoad(t, "https://home:"+h.secure, "", fmt.Sprintf("versions %s\ntls_trust_pool file %s\ntls_client_auth %s %s", versions, ca.file, certificate, key))
		if status, s := r.get(t, "a.example", "/"); status != 200 || s.Client != "relay.example" {
			t.Errorf("versions %s: status %d, home saw %+v", versions, status, s)
		}
	}
}

// TestExceptPorts: TLS upstreams and others behind one proxy, with retries
// between them.
func TestExceptPorts(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	closed := freePort(t)
	r, _ := newRelay(t)
	r.mustLoad(t, "home:"+closed+" home:"+h.plain+" home:"+h.secure, "lb_policy round_robin\nlb_retries 3",
		fmt.Sprintf("tls_trust_pool file %s\ntls_except_ports %s %s", ca.file, h.plain, closed))
	saw := map[string]bool{}
	for range 9 {
		status, s := r.get(t, "a.example", "/")
		if status != 200 || s.Host != "a.example" {
			t.Fatalf("status %d, home saw %+v", status, s)
		}
		saw[s.SNI] = true
	}
	if !saw[""] || !saw["a.example"] {
		t.Errorf("home saw the server names %v", saw)
	}
}

// TestHeaderOptions: what options do to headers.
func TestHeaderOptions(t *testing.T) {
	ca := newAuthority(t)
	h := startHome(t, loopbackSockets{}, ca, "a.example")
	for _, versions := range []string{"1.1", "1.1 2", "3"} {
		for _, c := range []struct {
			option, path, encoding string
			status                 int
		}{
			{"", "/", "gzip", 200},
			{"compression off", "/", "", 200},
			{"", "/large", "gzip", 200},
			{"max_response_header 16KiB", "/large", "", 502},
			{"max_response_header 16KiB", "/", "gzip", 200},
		} {
			t.Run(versions+" "+c.option+c.path, func(t *testing.T) {
				r, _ := newRelay(t)
				r.mustLoad(t, "https://home:"+h.secure, "", fmt.Sprintf("versions %s\ntls_trust_pool file %s\n%s", versions, ca.file, c.option))
				req, err := http.NewRequest(http.MethodGet, "http://"+r.address+c.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = "a.example"
				req.Header["Accept-Encoding"] = nil
				resp, err := (&http.Transport{DisableKeepAlives: true, DisableCompression: true}).RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.StatusCode != c.status {
					t.Fatalf("status %d", resp.StatusCode)
				}
				sights := h.sights()
				if got := sights[len(sights)-1].Encoding; c.status == 200 && got != c.encoding {
					t.Errorf("home was asked for encoding %q", got)
				}
			})
		}
	}
}
