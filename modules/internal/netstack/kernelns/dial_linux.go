package kernelns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// DialTCP connects from local to remote. A local address that is not the
// stack's own is used all the same, for the sake of transparent relays.
func (s *Stack) DialTCP(ctx context.Context, local, remote netip.AddrPort) (netstack.TCPConn, error) {
	local, remote = unmap(local), unmap(remote)
	conn, err := s.dialTCP(ctx, local, remote)
	if err != nil {
		var source net.Addr
		if netstack.IsBound(local) {
			source = net.TCPAddrFromAddrPort(local)
		}
		return nil, opError("dial", "tcp", source, net.TCPAddrFromAddrPort(remote), err)
	}
	return conn, nil
}

func (s *Stack) dialTCP(ctx context.Context, local, remote netip.AddrPort) (*tcpConn, error) {
	for {
		p := s.place.Load()
		conn, err := s.dialTCPAt(ctx, p, local, remote)
		if err == nil || !s.elsewhere(ctx, p, err) {
			return conn, err
		}
	}
}

func (s *Stack) dialTCPAt(ctx context.Context, p *place, local, remote netip.AddrPort) (*tcpConn, error) {
	d, err := s.prepareDial(ctx, p, unix.SOCK_STREAM, local, remote)
	if err != nil {
		return nil, err
	}
	defer d.file.Close()
	// Without these the connection works as well. The first lets others listen
	// on its port.
	_ = unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	_ = unix.SetsockoptInt(d.fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMax)
	conn, err := d.connected(s.connect(ctx, p, d.file, d.fd, sockaddr(remote, d.domain)))
	if err != nil {
		return nil, err
	}
	s.tune(conn.(*net.TCPConn))
	added, err := s.open.addTCP(conn.(*net.TCPConn), p, d.client)
	if err != nil {
		conn.Close()
		d.client.leave()
	}
	return added, err
}

// DialUDP returns a UDP socket that is connected to remote.
func (s *Stack) DialUDP(ctx context.Context, local, remote netip.AddrPort) (netstack.UDPConn, error) {
	local, remote = unmap(local), unmap(remote)
	conn, err := s.dialUDP(ctx, local, remote)
	if err != nil {
		var source net.Addr
		if netstack.IsBound(local) {
			source = net.UDPAddrFromAddrPort(local)
		}
		return nil, opError("dial", "udp", source, net.UDPAddrFromAddrPort(remote), err)
	}
	return conn, nil
}

func (s *Stack) dialUDP(ctx context.Context, local, remote netip.AddrPort) (*udpConn, error) {
	for {
		p := s.place.Load()
		conn, err := s.dialUDPAt(ctx, p, local, remote)
		if err == nil || !s.elsewhere(ctx, p, err) {
			return conn, err
		}
	}
}

func (s *Stack) dialUDPAt(ctx context.Context, p *place, local, remote netip.AddrPort) (*udpConn, error) {
	d, err := s.prepareDial(ctx, p, unix.SOCK_DGRAM, local, remote)
	if err != nil {
		return nil, err
	}
	defer d.file.Close()
	err = unix.Connect(d.fd, sockaddr(remote, d.domain))
	// Not before, or a port that the kernel chooses could be another's.
	_ = unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	conn, err := d.connected(err)
	if err != nil {
		return nil, err
	}
	added, err := s.open.addUDP(conn.(*net.UDPConn), p, d.client)
	if err != nil {
		conn.Close()
		d.client.leave()
	}
	return added, err
}

// elsewhere tells whether a dial that has failed at a place is to be made again,
// since the stack is at another one by now. If the place is lost it waits for that.
func (s *Stack) elsewhere(ctx context.Context, p *place, err error) bool {
	if errors.Is(err, errLost) {
		select {
		case <-p.life.Done():
		case <-ctx.Done():
		case <-s.life.Done():
		}
	}
	return p.life.Err() != nil && ctx.Err() == nil && s.life.Err() == nil
}

// dialing is a socket that has its source and is to be connected.
type dialing struct {
	file   *os.File
	fd     int // file's
	domain int
	client *clientRef
}

// prepareDial takes a socket for a dial that may lead somewhere.
func (s *Stack) prepareDial(ctx context.Context, p *place, kind int, local, remote netip.AddrPort) (*dialing, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := netstack.CheckDial(*s.addresses.Load(), local, remote); err != nil {
		return nil, err
	}
	stock := p.stocks.of(kind, remote.Addr())
	fd, err := stock.take(ctx)
	if err != nil {
		return nil, err
	}
	d := &dialing{file: os.NewFile(uintptr(fd), "socket"), fd: fd, domain: stock.domain}
	if d.client, err = s.bindSource(p, fd, d.domain, local); err != nil {
		d.file.Close()
		return nil, err
	}
	return d, nil
}

// connected makes a connection of the socket, unless connecting it has failed.
func (d *dialing) connected(err error) (net.Conn, error) {
	var conn net.Conn
	if err == nil {
		conn, err = net.FileConn(d.file)
	}
	if err != nil {
		d.client.leave()
	}
	return conn, err
}

// bindSource gives a socket the local address that is asked for, if any.
func (s *Stack) bindSource(p *place, fd, domain int, local netip.AddrPort) (client *clientRef, err error) {
	if !netstack.IsBound(local) {
		return nil, nil
	}
	// The same client may have connections to several upstreams from one port.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	address := local.Addr()
	if address.IsValid() && !address.IsUnspecified() {
		if local.Port() == 0 {
			// The port is chosen when the remote address is known, or there
			// would be no more than 64,000 for all of them together.
			_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		}
		if !netstack.HasAddress(*s.addresses.Load(), address) {
			if domain == unix.AF_INET {
				err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			} else {
				err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			}
			if err != nil {
				return nil, err
			}
			if err := p.clients.enter(address); err != nil {
				return nil, err
			}
			client = &clientRef{p.clients, address}
		}
	}
	if err := unix.Bind(fd, sockaddr(local, domain)); err != nil {
		client.leave()
		return nil, err
	}
	return client, nil
}

// connect connects a socket of a place, which does not block.
func (s *Stack) connect(ctx context.Context, p *place, file *os.File, fd int, to unix.Sockaddr) error {
	err := unix.Connect(fd, to)
	if err != unix.EINPROGRESS && err != unix.EINTR && err != unix.EALREADY {
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	stop := func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) }
	defer context.AfterFunc(ctx, stop)()
	defer context.AfterFunc(s.life, stop)()
	defer context.AfterFunc(p.life, stop)()
	var connectErr error
	err = raw.Write(func(fd uintptr) (done bool) {
		number, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			connectErr = err
			return true
		}
		if number != 0 {
			connectErr = syscall.Errno(number)
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	switch {
	case err == nil:
		return connectErr
	case ctx.Err() != nil:
		return ctx.Err()
	case s.life.Err() != nil:
		return net.ErrClosed
	case p.life.Err() != nil:
		return errLeft
	}
	return err
}

func unmap(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}
