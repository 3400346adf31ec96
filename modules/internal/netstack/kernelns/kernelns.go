// Package kernelns is the kernel's own TCP/IP stack as a tunnel's: sockets,
// BBR and pacing of the kernel in a network namespace of our own, which the
// host never sees. It needs no privilege where the host lets users make user
// namespaces, and exists on Linux only.
package kernelns

import (
	"net/netip"

	"go.uber.org/zap"
)

// Config says what a stack is made of. Addresses may be empty.
type Config struct {
	// Name is the name of the device, as in "wg0".
	Name string

	// MTU is the size of the largest inner packet, in bytes, at least
	// netstack.MinMTU.
	MTU int

	// Addresses are the stack's own, each with the length of its on-link
	// prefix.
	Addresses []netip.Prefix

	// CongestionControl is how TCP sends, by the kernel's name for it. If
	// empty, it is bbr where the kernel has it, but for connections whose
	// round trip takes less than a millisecond, else cubic.
	CongestionControl string

	// Logger gets the rare messages. If nil, there are none.
	Logger *zap.Logger
}
