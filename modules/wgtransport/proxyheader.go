package wgtransport

import (
	"io"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

// writeProxyHeader sends the header of the PROXY protocol, version "v1" or
// "v2", that says that the connection is client's, who reached this machine at
// reached. Without a client, as in a health check, it says that the connection
// is our own. Ports are 0, since the connection serves all requests of a
// client.
//
// See https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt.
func writeProxyHeader(w io.Writer, version string, client, reached netip.Addr) error {
	number := byte(1)
	if version == "v2" {
		number = 2
	}
	var source, destination net.Addr
	if client.IsValid() {
		client = client.WithZone("")
		// Both have to be of the same family. The client of a trusted proxy
		// may have another than the connection to us.
		if !reached.IsValid() || reached.Is4() != client.Is4() {
			reached = netip.IPv6Unspecified()
			if client.Is4() {
				reached = netip.IPv4Unspecified()
			}
		}
		source = net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0))
		destination = net.TCPAddrFromAddrPort(netip.AddrPortFrom(reached.WithZone(""), 0))
	}
	_, err := proxyproto.HeaderProxyFromAddrs(number, source, destination).WriteTo(w)
	return err
}
