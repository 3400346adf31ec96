// Package netstack says what a tunnel needs of a TCP/IP stack. The stack sits
// on the inner side of a tunnel: its Device is the TUN that wireguard-go reads
// packets from and writes packets to, and its dials and listeners are the
// connections that travel inside.
//
// The interface is made for two implementations, gVisor's userspace stack and
// the kernel's own stack in a private namespace, and shows the types of
// neither. *net.TCPConn satisfies TCPConn, *net.UDPConn satisfies UDPConn and
// *net.TCPListener satisfies TCPListener, so that kernel sockets pass through
// unwrapped and can be spliced.
package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// MinMTU is the least MTU that a stack accepts: IPv6 needs 1280 bytes
// (RFC 8200, section 5), and with it every path that carries IPv6 carries
// the tunnel.
const MinMTU = 1280

// MaxPing is the largest echo request that every stack can send whatever its
// MTU is: WireGuard's customary MTU, with which an outer packet fits in 1500
// bytes over IPv6 as over IPv4 (1420 + 32 + 8 + 40). On a stack with a larger
// MTU it may be as large as that.
const MaxPing = 1420

// ErrNoAddress means that the stack has no address of the family that a dial
// or a listener asks for.
var ErrNoAddress = errors.New("no tunnel address of this family")

// ErrTooManyClients means that a dial from an address that is not the stack's
// own cannot be, since sockets have as many others as a stack takes.
var ErrTooManyClients = errors.New("too many clients' addresses in use inside the tunnel")

// Stack is a TCP/IP stack on the inner side of one tunnel. Its methods may be
// called by several goroutines at once.
type Stack interface {
	// Device is the TUN for wireguard-go. It is the same value at every call.
	// Closing the device closes the stack and the other way round.
	Device() tun.Device

	// Kind is "gvisor" or "kernel".
	Kind() string

	// SetAddresses replaces the stack's own addresses with the given ones,
	// each with the length of its on-link prefix. An address that stays keeps
	// its connections and listeners. Connections from an address that goes
	// fail by their own timeouts, unless Reset has ended them before.
	SetAddresses(addresses []netip.Prefix) error

	// SetMTU changes the size of the largest inner packet, in bytes, while
	// connections are open. New connections advertise the matching MSS.
	SetMTU(mtu int) error

	// DialTCP connects from local to remote. The zero local address lets the
	// stack choose one of its own of remote's family, port 0 any free port.
	// It returns when the connection is established or ctx is done; a refused
	// connection is an error that is syscall.ECONNREFUSED, an unreachable one
	// syscall.EHOSTUNREACH or syscall.ENETUNREACH, a family without an address
	// ErrNoAddress.
	DialTCP(ctx context.Context, local, remote netip.AddrPort) (TCPConn, error)

	// DialUDP returns a UDP socket that sends to and receives from remote
	// only.
	DialUDP(ctx context.Context, local, remote netip.AddrPort) (UDPConn, error)

	// ListenTCP listens on local. The unspecified IPv6 address stands for all
	// addresses of both families, the unspecified IPv4 address for all IPv4
	// addresses; an address that the stack gets later counts too. A busy port
	// is an error that is syscall.EADDRINUSE.
	ListenTCP(local netip.AddrPort) (TCPListener, error)

	// ListenUDP returns an unconnected UDP socket, with the same meaning of
	// local as ListenTCP.
	ListenUDP(local netip.AddrPort) (UDPConn, error)

	// Ping sends an ICMP echo request to remote and waits until it is answered
	// or ctx is done, which is how the size of a path is measured. The request
	// leaves as one packet of exactly size bytes, IP header included, which may
	// be more than the MTU and is at most MaxPing; the answer may come in
	// fragments. The source is the own address that a dial to remote would
	// have. An ICMP error in place of the answer does not end the wait.
	// A size that no echo request can have is an error that is
	// syscall.EMSGSIZE, a family without an address ErrNoAddress.
	Ping(ctx context.Context, remote netip.Addr, size int) error

	// Reset resets the TCP connections, and closes the connected UDP sockets,
	// of whose two addresses is says so. It returns how many there were.
	Reset(is func(local, remote netip.Addr) bool) int

	// Close resets every connection, closes every listener and the device,
	// and waits until nothing of the stack runs any more.
	Close() error
}

// TCPConn is a TCP connection inside a tunnel.
type TCPConn interface {
	net.Conn
	CloseRead() error
	CloseWrite() error

	// SetLinger with 0 makes Close send RST and forget unsent data, as
	// net.TCPConn's does; a negative number restores the orderly close.
	SetLinger(seconds int) error

	SetKeepAliveConfig(config net.KeepAliveConfig) error
}

// TCPListener accepts TCP connections inside a tunnel. The connections it
// returns are TCPConns.
type TCPListener interface {
	net.Listener
	SetDeadline(t time.Time) error
}

// UDPConn is a UDP socket inside a tunnel, connected or not, as net.UDPConn.
type UDPConn interface {
	net.Conn
	net.PacketConn
}
