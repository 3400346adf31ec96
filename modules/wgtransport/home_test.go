package wgtransport

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pires/go-proxyproto"
	"github.com/quic-go/quic-go/http3"
)

// home is the web server at home: with TLS it has a certificate for each of
// its hosts and a wrong one by default, and it answers every request with what
// it saw of it.
type home struct {
	only atomic.Pointer[tls.Certificate] // what it shows, whatever it is asked for

	secure, plain string // ports of HTTPS (over TCP and QUIC) and of HTTP
	proxied       string // port of HTTPS with the PROXY protocol

	conns atomic.Int64
	tls   *tls.Config

	mu   sync.Mutex
	seen []sight
}

// sight is what home saw of a request.
type sight struct {
	Method, Host, Path, Proto string
	SNI                       string
	Conn                      int64  // which connection it came on
	Proxy                     string // what the PROXY protocol said
	Client                    string // of the client's certificate
	Forwarded                 string
	Encoding                  string // that is accepted
	Body                      int64
}

type connKey struct{}

// sockets opens home's sockets: on loopback, or inside a tunnel.
type sockets interface {
	listenTCP(t *testing.T) net.Listener
	listenUDP(t *testing.T, port string) net.PacketConn
}

type loopbackSockets struct{}

func (loopbackSockets) listenTCP(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func (loopbackSockets) listenUDP(t *testing.T, port string) net.PacketConn {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// startHome starts a home with a certificate for each of hosts.
func startHome(t *testing.T, sockets sockets, ca *authority, hosts ...string) *home {
	t.Helper()
	h := new(home)
	certificates := map[string]*tls.Certificate{}
	for _, host := range hosts {
		certificates[host] = ca.issue(t, host)
	}
	wrong := ca.issue(t, "wrong.invalid")
	h.tls = &tls.Config{
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if only := h.only.Load(); only != nil {
				return only, nil
			}
			if certificate, ok := certificates[hello.ServerName]; ok {
				return certificate, nil
			}
			return wrong, nil
		},
	}

	secure, plain, proxied := sockets.listenTCP(t), sockets.listenTCP(t), sockets.listenTCP(t)
	h.secure, h.plain, h.proxied = portOf(secure), portOf(plain), portOf(proxied)
	h.serve(t, secure, h.tls)
	h.serve(t, plain, nil)
	h.serve(t, &proxyproto.Listener{Listener: proxied, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
		return proxyproto.REQUIRE, nil
	}}, h.tls)

	packets := sockets.listenUDP(t, h.secure)
	quicServer := &http3.Server{
		TLSConfig: http3.ConfigureTLSConfig(h.tls),
		Handler:   h,
	}
	go func() { _ = quicServer.Serve(packets) }()
	t.Cleanup(func() {
		_ = quicServer.Close()
		_ = packets.Close()
	})
	return h
}

func portOf(listener net.Listener) string {
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

func (h *home) serve(t *testing.T, listener net.Listener, config *tls.Config) {
	t.Helper()
	server := &http.Server{
		Handler: h,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			raw := conn
			if secure, ok := conn.(*tls.Conn); ok {
				raw = secure.NetConn()
			}
			proxy := ""
			if p, ok := raw.(*proxyproto.Conn); ok {
				if header := p.ProxyHeader(); header != nil {
					proxy = fmt.Sprintf("v%d %s", header.Version, map[bool]string{true: "LOCAL", false: "PROXY"}[header.Command.IsLocal()])
					if source, ok := header.SourceAddr.(*net.TCPAddr); ok {
						proxy += " " + source.IP.String()
					}
				}
			}
			return context.WithValue(ctx, connKey{}, sight{Conn: h.conns.Add(1), Proxy: proxy})
		},
		Protocols: new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	if config != nil {
		config = config.Clone() // each server changes its own
		listener = tls.NewListener(listener, config)
	}
	server.TLSConfig = config
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

func (h *home) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s, _ := r.Context().Value(connKey{}).(sight)
	s.Method, s.Host, s.Path, s.Proto = r.Method, r.Host, r.URL.Path, r.Proto
	s.Forwarded = r.Header.Get("X-Forwarded-For")
	s.Encoding = r.Header.Get("Accept-Encoding")
	if r.TLS != nil {
		s.SNI = r.TLS.ServerName
		if len(r.TLS.PeerCertificates) > 0 {
			s.Client = r.TLS.PeerCertificates[0].Subject.CommonName
		}
	}
	if r.URL.Path == "/ws" {
		h.upgrade(w, r, s)
		return
	}
	s.Body, _ = io.Copy(io.Discard, r.Body)
	h.mu.Lock()
	h.seen = append(h.seen, s)
	h.mu.Unlock()
	switch r.URL.Path {
	case "/redirect":
		scheme := "http"
		if r.TLS != nil {
			scheme = "https"
		}
		http.Redirect(w, r, scheme+"://"+r.Host+"/there", http.StatusFound)
		return
	case "/large":
		w.Header().Set("X-Large", strings.Repeat("x", 20<<10))
	case "/never":
		<-r.Context().Done()
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

// upgrade echoes lines after switching protocols.
func (h *home) upgrade(w http.ResponseWriter, r *http.Request, s sight) {
	h.mu.Lock()
	h.seen = append(h.seen, s)
	h.mu.Unlock()
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		http.Error(w, "no upgrade", http.StatusBadRequest)
		return
	}
	conn, buffer, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")
	lines := bufio.NewScanner(buffer)
	for lines.Scan() {
		if _, err := fmt.Fprintf(conn, "home heard %s\n", lines.Text()); err != nil {
			return
		}
	}
}

func (h *home) sights() []sight {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]sight(nil), h.seen...)
}
