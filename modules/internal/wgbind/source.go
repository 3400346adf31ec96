package wgbind

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
)

// wireguard-go answers from the address at which a peer has called, as a host
// with several must. That address may be gone by now: many a line has another
// prefix every day. Linux refuses to send from it, or, while it is still kept,
// sends what nobody answers.

// anySource is an endpoint whose datagrams leave from the address that routing
// chooses. Others may be sending to endpoint, so it is left as it is.
func anySource(bind conn.Bind, endpoint conn.Endpoint) conn.Endpoint {
	if !endpoint.SrcIP().IsValid() {
		return endpoint
	}
	fresh, err := bind.ParseEndpoint(endpoint.DstToString())
	if err != nil {
		return endpoint
	}
	return fresh
}

// sourceLost tells from an error of sending that it cannot be done from an
// address, or over the interface that it was on, any more.
func sourceLost(err error, source netip.Addr) bool {
	if !source.IsValid() {
		return false
	}
	for _, errno := range []syscall.Errno{syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN} {
		if errors.Is(err, errno) {
			return true
		}
	}
	// Linux says so of the address, but of other things as well.
	return errors.Is(err, syscall.EINVAL) && !ours(source)
}

// ours tells whether this host has an address.
func ours(address netip.Addr) bool {
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	if err != nil {
		return !errors.Is(err, syscall.EADDRNOTAVAIL)
	}
	socket.Close()
	return true
}
