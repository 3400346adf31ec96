package kernelns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// listenBacklog is how many connections may wait to be accepted. It is Linux's
// somaxconn.
const listenBacklog = 4096

// listenPatience is how long who wants to listen waits for another namespace, if there is
// none at the moment.
const listenPatience = 5 * time.Second

// ListenTCP listens on local.
func (s *Stack) ListenTCP(local netip.AddrPort) (netstack.TCPListener, error) {
	local = unmap(local)
	l, err := s.newTCPListener(local)
	if err != nil {
		return nil, opError("listen", "tcp", nil, net.TCPAddrFromAddrPort(local), err)
	}
	return l, nil
}

func (s *Stack) newTCPListener(local netip.AddrPort) (*tcpListener, error) {
	socket, p, err := listenAt(s, local, listenTCP)
	if err != nil {
		return nil, err
	}
	local = netip.AddrPortFrom(local.Addr(), socket.Addr().(*net.TCPAddr).AddrPort().Port())
	l := &tcpListener{tune: s.tune}
	l.kept = kept[*net.TCPListener]{stack: s, network: "tcp", local: local, listen: listenTCP, restore: l.restore, place: p, socket: socket}
	if err := s.keep(&l.kept); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// listenAt opens a socket where the stack is, or will be in a moment.
func listenAt[S any](s *Stack, local netip.AddrPort, listen func(context.Context, *place, netip.AddrPort) (S, error)) (socket S, p *place, err error) {
	if err := netstack.CheckListen(*s.addresses.Load(), local); err != nil {
		return socket, nil, err
	}
	ctx, cancel := context.WithTimeout(s.life, listenPatience)
	defer cancel()
	for {
		p = s.place.Load()
		socket, err = listen(ctx, p, local)
		if err != nil && s.life.Err() != nil {
			return socket, nil, net.ErrClosed
		}
		if err == nil || !s.elsewhere(ctx, p, err) {
			return socket, p, err
		}
	}
}

func listenTCP(ctx context.Context, p *place, local netip.AddrPort) (*net.TCPListener, error) {
	local, stock := p.listening(unix.SOCK_STREAM, local)
	fd, err := stock.take(ctx)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "tcp")
	defer file.Close()
	// Connections do not keep the port, whether an earlier listener accepted
	// them or they were dialed from it.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	// What is accepted inherits it.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMax)
	if err := bindListener(fd, stock.domain, local); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, listenBacklog); err != nil {
		return nil, err
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	return listener.(*net.TCPListener), nil
}

// listening returns the stock for a socket that listens on local, and what it binds to: the
// unspecified IPv6 address is both families, of which a kernel may have one.
func (p *place) listening(kind int, local netip.AddrPort) (netip.AddrPort, *blanks) {
	if !p.ipv6 && (!local.Addr().IsValid() || local.Addr().IsUnspecified()) {
		local = netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port())
	}
	return local, p.stocks.of(kind, local.Addr())
}

// bindListener binds; the unspecified IPv6 address is both families.
func bindListener(fd, domain int, local netip.AddrPort) error {
	if domain == unix.AF_INET6 {
		// A host may have made the other meaning the default.
		only6 := 1
		if !local.Addr().IsValid() || local.Addr().IsUnspecified() {
			only6 = 0
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, only6); err != nil {
			return err
		}
	}
	return unix.Bind(fd, sockaddr(local, domain))
}

// ListenUDP returns an unconnected UDP socket. One on a given port outlives the
// namespace, as listeners do. One whose port is left to the stack is a client's:
// it ends with the namespace, as connections do, and is a *net.UDPConn in all, so
// that QUIC can use the kernel's offloads.
func (s *Stack) ListenUDP(local netip.AddrPort) (netstack.UDPConn, error) {
	local = unmap(local)
	conn, err := s.newUDPListener(local)
	if err != nil {
		return nil, opError("listen", "udp", nil, net.UDPAddrFromAddrPort(local), err)
	}
	return conn, nil
}

func (s *Stack) newUDPListener(local netip.AddrPort) (netstack.UDPConn, error) {
	socket, p, err := listenAt(s, local, listenUDP)
	if err != nil {
		return nil, err
	}
	if local.Port() == 0 {
		conn, err := s.open.addUDP(socket, p, nil)
		if err == nil {
			return conn, nil
		}
		_ = socket.Close()
		if errors.Is(err, errLeft) {
			return s.newUDPListener(local)
		}
		return nil, err
	}
	l := new(udpListener)
	l.kept = kept[*net.UDPConn]{stack: s, network: "udp", local: local, listen: listenUDP, restore: l.restore, place: p, socket: socket}
	if err := s.keep(&l.kept); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func listenUDP(ctx context.Context, p *place, local netip.AddrPort) (*net.UDPConn, error) {
	local, stock := p.listening(unix.SOCK_DGRAM, local)
	fd, err := stock.take(ctx)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "udp")
	defer file.Close()
	if err := bindUDPListener(p, fd, stock.domain, local); err != nil {
		return nil, err
	}
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// bindUDPListener binds to a port even if sockets were dialed from it: they go
// on getting what their peers send, and the listener gets the rest. A port that
// the kernel chooses is nobody else's.
func bindUDPListener(p *place, fd, domain int, local netip.AddrPort) error {
	if local.Port() == 0 {
		return bindListener(fd, domain, local)
	}
	// Two listeners with this option could have the same port, so that they
	// have it one after the other, and only while they bind.
	p.binding.Lock()
	defer p.binding.Unlock()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := bindListener(fd, domain, local); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
}
