package l4wireguard

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/pires/go-proxyproto"
	"go.uber.org/zap"
)

// tcpPair returns the two ends of a connection over loopback.
func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	for _, c := range []*net.TCPConn{near, far} {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return near, far
}

// embedding wraps as caddy-l4's throttle and tee do.
type embedding struct {
	net.Conn
	_ int
}

func TestClientUnwraps(t *testing.T) {
	for _, tt := range []struct {
		name string
		wrap func(net.Conn) net.Conn
	}{
		{"nothing", func(c net.Conn) net.Conn { return c }},
		{"an embedding value", func(c net.Conn) net.Conn { return embedding{Conn: c} }},
		{"an embedding pointer", func(c net.Conn) net.Conn { return &embedding{Conn: c} }},
		{"PROXY protocol", func(c net.Conn) net.Conn { return proxyproto.NewConn(c) }},
		{"a layer4 connection", func(c net.Conn) net.Conn { return layer4.WrapConnection(c, nil, zap.NewNop()) }},
		{"all of them", func(c net.Conn) net.Conn {
			return embedding{Conn: layer4.WrapConnection(&embedding{Conn: proxyproto.NewConn(c)}, nil, zap.NewNop())}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			far, near := tcpPair(t)
			// go-proxyproto reads it before it says who is there.
			if _, err := io.WriteString(far, "PROXY TCP4 203.0.113.9 198.51.100.1 4711 22\r\n"); err != nil {
				t.Fatal(err)
			}
			c := &client{Connection: layer4.WrapConnection(tt.wrap(near), nil, zap.NewNop())}
			if isDatagram(c.Connection) {
				t.Error("takes TCP for datagrams")
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := far.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after CloseWrite the client sees %v", err)
			}
			if _, err := io.WriteString(far, "still open"); err != nil {
				t.Error(err)
			}
			c.refuse()
			mustResetOrPipe(t, far)
		})
	}
}

// mustResetOrPipe wants an error from a connection that has had its EOF.
func mustResetOrPipe(t *testing.T, c net.Conn) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := io.WriteString(c, "x"); err != nil {
			return
		}
	}
	t.Error("the connection was not reset")
}

func TestClientThatCannot(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	c := &client{Connection: layer4.WrapConnection(near, nil, zap.NewNop())}
	if err := c.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloseWrite of a pipe: %v", err)
	}
	c.refuse()
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end sees %v", err)
	}
}

// Where TLS ends here, a reset must not be preceded by a close_notify: it would
// say that what came before was all there is.
func TestClientTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"home"}, NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}}
	parsed, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(parsed)

	start := func(t *testing.T) (*client, *tls.Conn) {
		far, near := tcpPair(t)
		cx := layer4.WrapConnection(near, nil, zap.NewNop())
		c := &client{Connection: cx.Wrap(tls.Server(cx, config))}
		peer := tls.Client(far, &tls.Config{ServerName: "home", RootCAs: roots})
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(c, "half of it")
			sent <- err
		}()
		mustRead(t, peer, "half of it")
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		return c, peer
	}
	t.Run("reset", func(t *testing.T) {
		c, peer := start(t)
		c.refuse()
		mustReset(t, peer)
	})
	t.Run("half close", func(t *testing.T) {
		c, peer := start(t)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client sees %v", err)
		}
		if _, err := io.WriteString(peer, "the rest"); err != nil {
			t.Fatal(err)
		}
		mustRead(t, c, "the rest")
	})
}
