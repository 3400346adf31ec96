package l4wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/mholt/caddy-l4/modules/l4proxyprotocol"
	"github.com/pires/go-proxyproto"

	"github.com/homeward-relay/homeward/modules/internal/relay"
)

// errProxyV1 refuses what the PROXY protocol cannot say.
var errProxyV1 = errors.New("proxy_protocol v1 knows no UDP: use v2, or leave it out")

// proxyVersion parses the option proxy_protocol. 0 stands for none.
func proxyVersion(option string) (byte, error) {
	switch option {
	case "":
		return 0, nil
	case "v1":
		return 1, nil
	case "v2":
		return 2, nil
	}
	return 0, fmt.Errorf("proxy_protocol %q is no version: use v1 or v2", option)
}

// proxyHeader encodes the header that says who the client is: the address in
// the PROXY protocol header that it came with, if it did.
func proxyHeader(version byte, cx *layer4.Connection) ([]byte, error) {
	conn := l4proxyprotocol.GetConn(cx)
	remote, local := conn.RemoteAddr(), conn.LocalAddr()
	if to, ok := local.(*net.UDPAddr); ok && to.IP.IsUnspecified() {
		local = sameFamily(remote, to)
	}
	header, err := proxyproto.HeaderProxyFromAddrs(version, remote, local).Format()
	if err != nil {
		return nil, fmt.Errorf("encoding PROXY protocol header: %w", err)
	}
	return header, nil
}

// sameFamily gives a UDP listener's unspecified address the family of the
// client's: a dual-stack socket does not tell which of its addresses a
// datagram came to, and the header has one family for both.
func sameFamily(remote net.Addr, local *net.UDPAddr) net.Addr {
	if from, ok := remote.(*net.UDPAddr); ok && from.IP.To4() != nil {
		return &net.UDPAddr{IP: net.IPv4zero.To4(), Port: local.Port}
	}
	return &net.UDPAddr{IP: net.IPv6zero, Port: local.Port}
}

// writeProxyHeader begins a TCP connection to an upstream with the header.
func writeProxyHeader(ctx context.Context, up relay.Conn, version byte, cx *layer4.Connection) error {
	header, err := proxyHeader(version, cx)
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := up.SetWriteDeadline(deadline); err != nil {
			return fmt.Errorf("writing PROXY protocol header: %w", err)
		}
	}
	if _, err := up.Write(header); err != nil {
		return fmt.Errorf("writing PROXY protocol header: %w", err)
	}
	if err := up.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("writing PROXY protocol header: %w", err)
	}
	return nil
}
