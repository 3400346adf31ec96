package kernelns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

const (
	echoHeader = 8
	ipv4Header = ipv4.HeaderLen
	ipv6Header = ipv6.HeaderLen

	// nonceSize is how many random bytes an echo request begins with, so that
	// a late answer to another one is not taken for its own.
	nonceSize = 8
)

// pinger sends echo requests through raw sockets, which may send packets up to
// the size of the device's MTU whatever that of the routes is, and takes the
// answers from them.
type pinger struct {
	ipv4, ipv6 *os.File // ipv6 is nil where there is none
	receiving  sync.WaitGroup

	mu      sync.Mutex
	waiting map[[nonceSize]byte]*echo
}

// echo is a request that waits for its answer.
type echo struct {
	to       netip.Addr
	ident    uint16
	payload  []byte
	answered chan struct{}
}

// newPinger takes over two raw sockets; fd6 is -1 where there is no IPv6.
func newPinger(fd4, fd6 int) (*pinger, error) {
	p := &pinger{ipv4: os.NewFile(uintptr(fd4), "icmp"), waiting: make(map[[nonceSize]byte]*echo)}
	if fd6 >= 0 {
		p.ipv6 = os.NewFile(uintptr(fd6), "icmpv6")
	}
	if err := prepareRaw(fd4, fd6); err != nil {
		p.close()
		return nil, err
	}
	p.receiving.Go(func() { p.receive(p.ipv4, true) })
	if p.ipv6 != nil {
		p.receiving.Go(func() { p.receive(p.ipv6, false) })
	}
	return p, nil
}

// prepareRaw lets raw sockets send whole packets and receive answers only.
func prepareRaw(fd4, fd6 int) error {
	const icmpFilter = 1 // ICMP_FILTER of linux/icmp.h: a bit for each type that is kept out
	const echoReply4 = 0
	if err := unix.SetsockoptInt(fd4, unix.SOL_IP, unix.IP_HDRINCL, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	// Or the kernel would cut what is larger than the route's MTU.
	if err := unix.SetsockoptInt(fd4, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.SetsockoptInt(fd4, unix.SOL_RAW, icmpFilter, ^(1 << echoReply4)); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if fd6 < 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd6, unix.SOL_IPV6, unix.IPV6_HDRINCL, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.SetsockoptInt(fd6, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeEchoReply)
	var blocked unix.ICMPv6Filter
	for kind := range 256 {
		if filter.WillBlock(ipv6.ICMPType(kind)) {
			blocked.Data[kind>>5] |= 1 << (kind & 31)
		}
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptICMPv6Filter(fd6, unix.SOL_ICMPV6, 1, &blocked))
}

// Ping sends an echo request of size bytes and waits for the answer.
func (s *Stack) Ping(ctx context.Context, remote netip.Addr, size int) error {
	remote = remote.Unmap()
	if err := s.ping(ctx, remote, size); err != nil {
		return opError("ping", "ip", nil, &net.IPAddr{IP: remote.AsSlice(), Zone: remote.Zone()}, err)
	}
	return nil
}

func (s *Stack) ping(ctx context.Context, remote netip.Addr, size int) error {
	addresses := *s.addresses.Load()
	if err := netstack.CheckDial(addresses, netip.AddrPort{}, netip.AddrPortFrom(remote, 1)); err != nil {
		return err
	}
	if netstack.HasAddress(addresses, remote) {
		return syscall.EHOSTUNREACH
	}
	headers := ipv4Header + echoHeader
	if remote.Is6() {
		headers = ipv6Header + echoHeader
	}
	mtu, _ := s.device.MTU()
	if size < headers+nonceSize || size > max(netstack.MaxPing, mtu) {
		return syscall.EMSGSIZE
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.life.Err() != nil {
		return net.ErrClosed
	}

	request := &echo{to: remote, payload: make([]byte, size-headers), answered: make(chan struct{})}
	var random [nonceSize + 2]byte
	_, _ = rand.Read(random[:])
	nonce := [nonceSize]byte(random[:nonceSize])
	copy(request.payload, nonce[:])
	request.ident = binary.BigEndian.Uint16(random[nonceSize:])
	packet, err := request.packet(sourceFor(addresses, remote))
	if err != nil {
		return err
	}

	p := s.place.Load().pinger
	p.mu.Lock()
	p.waiting[nonce] = request
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, nonce)
		p.mu.Unlock()
	}()
	if err := p.send(packet, remote); err != nil {
		return err
	}
	select {
	case <-request.answered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.life.Done():
		return net.ErrClosed
	}
}

// packet is the request as an IP packet.
func (e *echo) packet(from netip.Addr) ([]byte, error) {
	message := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(e.ident), Data: e.payload}}
	if e.to.Is4() {
		body, err := message.Marshal(nil)
		if err != nil {
			return nil, err
		}
		// The kernel fills in what is left 0: checksum and ID.
		packet := make([]byte, ipv4Header, ipv4Header+len(body))
		packet[0] = 4<<4 | ipv4Header/4
		binary.NativeEndian.PutUint16(packet[2:], uint16(ipv4Header+len(body)))
		packet[8] = 64
		packet[9] = unix.IPPROTO_ICMP
		copy(packet[12:], from.AsSlice())
		copy(packet[16:], e.to.AsSlice())
		return append(packet, body...), nil
	}
	message.Type = ipv6.ICMPTypeEchoRequest
	body, err := message.Marshal(icmp.IPv6PseudoHeader(from.AsSlice(), e.to.AsSlice()))
	if err != nil {
		return nil, err
	}
	packet := make([]byte, ipv6Header, ipv6Header+len(body))
	packet[0] = 6 << 4
	binary.BigEndian.PutUint16(packet[4:], uint16(len(body)))
	packet[6] = unix.IPPROTO_ICMPV6
	packet[7] = 64
	copy(packet[8:], from.AsSlice())
	copy(packet[24:], e.to.AsSlice())
	return append(packet, body...), nil
}

func (p *pinger) send(packet []byte, to netip.Addr) error {
	file, domain := p.ipv4, unix.AF_INET
	if to.Is6() {
		file, domain = p.ipv6, unix.AF_INET6
	}
	if file == nil {
		return syscall.EAFNOSUPPORT
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), packet, 0, sockaddr(netip.AddrPortFrom(to, 0), domain))
		return sendErr != unix.EAGAIN
	}); err != nil {
		return err
	}
	return sendErr
}

// receive takes answers until the socket is closed. With IPv4 they begin with
// the IP header.
func (p *pinger) receive(file *os.File, ipHeader bool) {
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	for {
		var n int
		var from unix.Sockaddr
		var receiveErr error
		if err := raw.Read(func(fd uintptr) bool {
			n, from, receiveErr = unix.Recvfrom(int(fd), buf, 0)
			return receiveErr != unix.EAGAIN
		}); err != nil {
			return
		}
		if receiveErr != nil {
			continue
		}
		message := buf[:n]
		if ipHeader {
			if n < ipv4Header || n < int(message[0]&15)*4 {
				continue
			}
			message = message[int(message[0]&15)*4:]
		}
		if len(message) >= echoHeader+nonceSize {
			p.answer(message, addressOf(from))
		}
	}
}

func (p *pinger) answer(message []byte, from netip.Addr) {
	nonce := [nonceSize]byte(message[echoHeader:])
	p.mu.Lock()
	defer p.mu.Unlock()
	request := p.waiting[nonce]
	if request == nil || request.to != from || request.ident != binary.BigEndian.Uint16(message[4:]) || !bytes.Equal(request.payload, message[echoHeader:]) {
		return
	}
	delete(p.waiting, nonce)
	close(request.answered)
}

func (p *pinger) close() {
	_ = p.ipv4.Close()
	if p.ipv6 != nil {
		_ = p.ipv6.Close()
	}
	p.receiving.Wait()
}

// sourceFor is the own address that a connection to remote comes from.
func sourceFor(addresses []netip.Prefix, remote netip.Addr) netip.Addr {
	var best netip.Prefix
	for _, prefix := range addresses {
		if prefix.Addr().Is4() != remote.Is4() {
			continue
		}
		fits := prefix.Contains(remote)
		if !best.IsValid() || fits && (!best.Contains(remote) || prefix.Bits() > best.Bits()) {
			best = prefix
		}
	}
	return best.Addr()
}

func addressOf(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr)
	}
	return netip.Addr{}
}
