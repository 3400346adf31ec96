package gvisor

import (
	"context"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// listenBacklog is how many connections may wait to be accepted, and how many
// may be in their handshake before SYN cookies take over. It is Linux's
// somaxconn.
const listenBacklog = 4096

// socket is what all kinds of socket are made of.
type socket struct {
	endpoint tcpip.Endpoint
	queue    *waiter.Queue
}

// DialTCP connects from local to remote. A local address that is not the
// stack's own is used all the same, for the sake of transparent relays.
func (s *Stack) DialTCP(ctx context.Context, local, remote netip.AddrPort) (netstack.TCPConn, error) {
	local, remote = unmap(local), unmap(remote)
	fail := func(err error) (netstack.TCPConn, error) {
		return nil, opError("dial", "tcp", tcpAddrOrNil(local), net.TCPAddrFromAddrPort(remote), err)
	}
	if err := netstack.CheckDial(*s.addresses.Load(), local, remote); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	var conn *tcpConn
	err := s.open(func() error {
		sock, err := s.newSocket(tcp.ProtocolNumber, networkOf(remote.Addr()))
		if err != nil {
			return err
		}
		conn = newTCPConn(sock)
		if netstack.IsBound(local) {
			// The same client may have connections to several upstreams from
			// one port.
			sock.endpoint.SocketOptions().SetReuseAddress(true)
			if err := sock.endpoint.Bind(fullAddress(local)); err != nil {
				conn.abandon()
				return errno(err)
			}
		}
		switch err := sock.endpoint.Connect(fullAddress(remote)).(type) {
		case nil, *tcpip.ErrConnectStarted:
			return nil
		default:
			conn.abandon()
			return errno(err)
		}
	})
	if err != nil {
		return fail(err)
	}
	if err := conn.connected(ctx); err != nil {
		conn.abandon()
		return fail(err)
	}
	return conn, nil
}

// DialUDP returns a UDP socket that is connected to remote.
func (s *Stack) DialUDP(ctx context.Context, local, remote netip.AddrPort) (netstack.UDPConn, error) {
	local, remote = unmap(local), unmap(remote)
	fail := func(err error) (netstack.UDPConn, error) {
		return nil, opError("dial", "udp", udpAddrOrNil(local), net.UDPAddrFromAddrPort(remote), err)
	}
	if err := netstack.CheckDial(*s.addresses.Load(), local, remote); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	var conn *udpConn
	err := s.open(func() error {
		sock, err := s.newSocket(udp.ProtocolNumber, networkOf(remote.Addr()))
		if err != nil {
			return err
		}
		if netstack.IsBound(local) {
			sock.endpoint.SocketOptions().SetReuseAddress(true)
			if err := sock.endpoint.Bind(fullAddress(local)); err != nil {
				sock.endpoint.Close()
				return errno(err)
			}
		}
		if err := sock.endpoint.Connect(fullAddress(remote)); err != nil {
			sock.endpoint.Close()
			return errno(err)
		}
		conn = newUDPConn(sock, local.Addr(), remote)
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return conn, nil
}

// ListenTCP listens on local.
func (s *Stack) ListenTCP(local netip.AddrPort) (netstack.TCPListener, error) {
	local = unmap(local)
	var listener *tcpListener
	err := s.open(func() error {
		sock, err := s.bind(tcp.ProtocolNumber, local)
		if err != nil {
			return err
		}
		if err := sock.endpoint.Listen(listenBacklog); err != nil {
			sock.endpoint.Close()
			return errno(err)
		}
		listener = newTCPListener(sock, local.Addr())
		return nil
	})
	if err != nil {
		return nil, opError("listen", "tcp", nil, net.TCPAddrFromAddrPort(local), err)
	}
	return listener, nil
}

// ListenUDP returns an unconnected UDP socket.
func (s *Stack) ListenUDP(local netip.AddrPort) (netstack.UDPConn, error) {
	local = unmap(local)
	var conn *udpConn
	err := s.open(func() error {
		sock, err := s.bind(udp.ProtocolNumber, local)
		if err != nil {
			return err
		}
		conn = newUDPConn(sock, local.Addr(), netip.AddrPort{})
		return nil
	})
	if err != nil {
		return nil, opError("listen", "udp", nil, net.UDPAddrFromAddrPort(local), err)
	}
	return conn, nil
}

func (s *Stack) newSocket(transport tcpip.TransportProtocolNumber, network tcpip.NetworkProtocolNumber) (socket, error) {
	queue := new(waiter.Queue)
	endpoint, err := s.stack.NewEndpoint(transport, network, queue)
	if err != nil {
		return socket{}, errno(err)
	}
	return socket{endpoint: endpoint, queue: queue}, nil
}

// bind makes a socket for a listener.
func (s *Stack) bind(transport tcpip.TransportProtocolNumber, local netip.AddrPort) (socket, error) {
	addr := local.Addr()
	network := tcpip.NetworkProtocolNumber(ipv6.ProtocolNumber)
	if addr.Is4() {
		network = ipv4.ProtocolNumber
	}
	if err := netstack.CheckListen(*s.addresses.Load(), local); err != nil {
		return socket{}, err
	}
	sock, err := s.newSocket(transport, network)
	if err != nil {
		return socket{}, err
	}
	if transport == tcp.ProtocolNumber {
		// Connections that an earlier listener accepted do not keep the port.
		// A second listener is found out when it listens.
		sock.endpoint.SocketOptions().SetReuseAddress(true)
	}
	if err := sock.endpoint.Bind(fullAddress(local)); err != nil {
		sock.endpoint.Close()
		return socket{}, errno(err)
	}
	return sock, nil
}

func unmap(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

func tcpAddrOrNil(addr netip.AddrPort) net.Addr {
	if !netstack.IsBound(addr) {
		return nil
	}
	return net.TCPAddrFromAddrPort(addr)
}

func udpAddrOrNil(addr netip.AddrPort) net.Addr {
	if !netstack.IsBound(addr) {
		return nil
	}
	return net.UDPAddrFromAddrPort(addr)
}
