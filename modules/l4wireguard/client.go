package l4wireguard

import (
	"errors"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/mholt/caddy-l4/modules/l4proxyprotocol"

	"github.com/homeward-relay/homeward/modules/internal/relay"
)

// maxWrappers bounds how deep a connection is unwrapped.
const maxWrappers = 32

// client is a layer4.Connection with what a relay needs besides: a half-close
// and a reset. Both are found in what the connection wraps, since neither
// caddy-l4 nor its handlers (tls, throttle, tee, proxy_protocol) pass them on.
// Reading goes through the connection, which first returns what the matchers
// have prefetched.
type client struct {
	*layer4.Connection
	reset atomic.Bool

	// read and written are what went through the connection and was counted
	// by it, each kept by the one goroutine that reads or writes.
	read, written uint64
}

var _ relay.Spliceable = (*client)(nil)

type halfCloser interface{ CloseWrite() error }

type lingerer interface {
	net.Conn
	SetLinger(seconds int) error
}

// CloseWrite closes the outermost connection that can be closed by half: with
// TLS terminated here that is the TLS connection.
func (c *client) CloseWrite() error {
	if half, ok := unwrapTo[halfCloser](c.Conn); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetLinger with 0 makes Close reset the connection.
func (c *client) SetLinger(seconds int) error {
	transport, ok := unwrapTo[lingerer](c.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	c.reset.Store(seconds == 0)
	return transport.SetLinger(seconds)
}

// Close closes the connection. A reset closes what is below all wrappers: a
// TLS connection's Close would first say close_notify, and the client would
// take a cut transfer for a complete one.
func (c *client) Close() error {
	if c.reset.Load() {
		if transport, ok := unwrapTo[lingerer](c.Conn); ok {
			return transport.Close()
		}
	}
	return c.Connection.Close()
}

// refuse resets the connection.
func (c *client) refuse() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// unwrapTo returns the outermost of the connections in conn that is a T.
func unwrapTo[T any](conn net.Conn) (T, bool) {
	for range maxWrappers {
		if conn == nil {
			break
		}
		if t, ok := conn.(T); ok {
			return t, true
		}
		conn = unwrap(conn)
	}
	var none T
	return none, false
}

// unwrap returns the connection inside conn, or nil.
func unwrap(conn net.Conn) net.Conn {
	switch c := conn.(type) {
	case *layer4.Connection:
		return c.Conn
	case interface{ NetConn() net.Conn }: // crypto/tls and many others
		return c.NetConn()
	case interface{ Raw() net.Conn }: // go-proxyproto
		return c.Raw()
	case interface{ Unwrap() net.Conn }:
		return c.Unwrap()
	}

	// caddy-l4's own wrappers (throttle, tee, and others) are unexported
	// structs that embed a net.Conn.
	v := reflect.ValueOf(conn)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return nil
	}
	field, ok := v.Type().FieldByName("Conn")
	if !ok || !field.Anonymous || len(field.Index) != 1 {
		return nil
	}
	inner, _ := v.FieldByIndex(field.Index).Interface().(net.Conn)
	return inner
}

// isDatagram reports whether the connection is a caddy-l4 packet connection,
// whatever handlers have wrapped around it.
func isDatagram(cx *layer4.Connection) bool {
	var conn net.Conn = cx
	for range maxWrappers {
		inner := unwrap(conn)
		if inner == nil {
			break
		}
		conn = inner
	}
	// Not by its type: a *net.UnixConn is a net.PacketConn even where it
	// carries a stream.
	local := conn.LocalAddr()
	if local == nil {
		return false
	}
	network := local.Network()
	return strings.HasPrefix(network, "udp") || strings.HasSuffix(network, "+udp") || network == "unixgram"
}

// clientAddr is the address and port on whose behalf upstreams are dialed:
// those in the PROXY protocol header if there was one. It is the zero value if
// the client has no IP address.
func clientAddr(cx *layer4.Connection) netip.AddrPort {
	remote := l4proxyprotocol.GetConn(cx).RemoteAddr()
	if remote == nil {
		return netip.AddrPort{}
	}
	at, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}
