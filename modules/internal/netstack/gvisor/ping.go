package gvisor

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// echoHeader is the size of the header of an echo message, of either family.
const echoHeader = header.ICMPv4MinimumSize

// nonceSize is how many random bytes an echo request begins with, so that a
// late answer to another one is not taken for its own.
const nonceSize = 8

// Ping sends an echo request of size bytes and waits for the answer. The
// request goes straight into the queue to the device: the stack itself would
// cut it to the MTU. The answer comes to one of the stack's own sockets, which
// gets it whole even if it came in fragments.
func (s *Stack) Ping(ctx context.Context, remote netip.Addr, size int) error {
	remote = remote.Unmap()
	fail := func(err error) error {
		return opError("ping", "ip", nil, &net.IPAddr{IP: remote.AsSlice(), Zone: remote.Zone()}, err)
	}
	if err := netstack.CheckDial(*s.addresses.Load(), netip.AddrPort{}, netip.AddrPortFrom(remote, 1)); err != nil {
		return fail(err)
	}
	if netstack.HasAddress(*s.addresses.Load(), remote) {
		return fail(syscall.EHOSTUNREACH)
	}
	if size < leastPing(remote) || size > max(netstack.MaxPing, int(s.link.MTU())) {
		return fail(syscall.EMSGSIZE)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}

	var socket socket
	var source tcpip.Address
	err := s.open(func() (err error) {
		socket, source, err = s.pingSocket(remote)
		return err
	})
	if err != nil {
		return fail(err)
	}
	defer socket.endpoint.Close()
	entry, readable := newEntry(waiter.ReadableEvents | hangUp)
	socket.queue.EventRegister(&entry)
	defer socket.queue.EventUnregister(&entry)

	local, tcpipErr := socket.endpoint.GetLocalAddress()
	if tcpipErr != nil {
		return fail(errno(tcpipErr))
	}
	packet := echoRequest(source, addressOf(remote), local.Port, size)
	payload := packet[size-pingPayload(remote, size):]
	buf := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	sent := s.link.out.push(buf, false)
	buf.DecRef()
	if !sent {
		return fail(syscall.ENOBUFS)
	}
	return fail(awaitEcho(ctx, socket.endpoint, readable, payload))
}

// pingSocket returns a socket that receives answers to echo requests, and the
// address that they are to come from.
func (s *Stack) pingSocket(remote netip.Addr) (socket, tcpip.Address, error) {
	network := networkOf(remote)
	route, err := s.stack.FindRoute(nicID, tcpip.Address{}, addressOf(remote), network, false)
	if err != nil {
		return socket{}, tcpip.Address{}, errno(err)
	}
	source := route.LocalAddress()
	route.Release()
	transport := icmp.ProtocolNumber4
	if remote.Is6() {
		transport = icmp.ProtocolNumber6
	}
	sock, failure := s.newSocket(transport, network)
	if failure != nil {
		return socket{}, tcpip.Address{}, failure
	}
	if err := sock.endpoint.Bind(tcpip.FullAddress{Addr: source}); err != nil {
		sock.endpoint.Close()
		return socket{}, tcpip.Address{}, errno(err)
	}
	return sock, source, nil
}

// awaitEcho reads echo replies until one has the payload.
func awaitEcho(ctx context.Context, endpoint tcpip.Endpoint, readable <-chan struct{}, payload []byte) error {
	for {
		var reply bytes.Buffer
		_, err := endpoint.Read(&reply, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			if got := reply.Bytes(); len(got) >= echoHeader && bytes.Equal(got[echoHeader:], payload) {
				return nil
			}
		case *tcpip.ErrWouldBlock:
			select {
			case <-readable:
			case <-ctx.Done():
				return ctx.Err()
			}
		case *tcpip.ErrClosedForReceive:
			return net.ErrClosed
		default:
			return errno(err)
		}
	}
}

// echoRequest makes an echo request of size bytes with random bytes in it.
func echoRequest(from, to tcpip.Address, ident uint16, size int) []byte {
	packet := make([]byte, size)
	message := packet[header.IPv6MinimumSize:]
	if to.Len() == header.IPv4AddressSize {
		message = packet[header.IPv4MinimumSize:]
	}
	_, _ = rand.Read(message[echoHeader : echoHeader+nonceSize])
	if to.Len() == header.IPv4AddressSize {
		echo := header.ICMPv4(message)
		echo.SetType(header.ICMPv4Echo)
		echo.SetIdent(ident)
		echo.SetChecksum(^checksum.Checksum(message, 0))
		header.IPv4(packet).Encode(&header.IPv4Fields{
			TotalLength: uint16(size),
			// A gVisor at the other end copies it into the fragments of its
			// answer, which those of another one must not share.
			ID:       binary.BigEndian.Uint16(message[echoHeader:]),
			TTL:      64,
			Protocol: uint8(header.ICMPv4ProtocolNumber),
			SrcAddr:  from,
			DstAddr:  to,
		})
		header.IPv4(packet).SetChecksum(^header.IPv4(packet).CalculateChecksum())
		return packet
	}
	echo := header.ICMPv6(message)
	echo.SetType(header.ICMPv6EchoRequest)
	echo.SetIdent(ident)
	echo.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: echo, Src: from, Dst: to}))
	header.IPv6(packet).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(len(message)),
		TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit:          64,
		SrcAddr:           from,
		DstAddr:           to,
	})
	return packet
}

// pingPayload is how many bytes of an echo request follow its headers.
func pingPayload(remote netip.Addr, size int) int {
	if remote.Is4() {
		return size - header.IPv4MinimumSize - echoHeader
	}
	return size - header.IPv6MinimumSize - echoHeader
}

// leastPing is the size of the least echo request.
func leastPing(remote netip.Addr) int { return nonceSize - pingPayload(remote, 0) }
