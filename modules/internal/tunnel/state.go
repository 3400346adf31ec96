package tunnel

import (
	"net/netip"
	"slices"
	"time"
)

// State is what can be said of a live tunnel. No secret is part of it.
type State struct {
	// PublicKey is this end's own.
	PublicKey PublicKey

	// Addresses are this end's addresses inside the tunnel.
	Addresses []netip.Prefix

	// ListenPort is the UDP port for the encrypted packets, never 0.
	ListenPort uint16

	// MTU is the size of the largest inner packet, in bytes, as it is now.
	MTU int

	// Stack is the kind of stack that the tunnel has, StackReason in a few
	// words why.
	Stack, StackReason string

	// CongestionControl is how new TCP connections send, or "" if the stack
	// does not say, or says only that it is the kernel's default.
	CongestionControl string

	// Since is when the tunnel came up.
	Since time.Time

	// Peers are the other ends, in the order of the configuration.
	Peers []PeerStatus
}

// State returns the live tunnel's state. It is false while the tunnel is down.
func (t *Tunnel) State() (State, bool) {
	t.mu.Lock()
	l := t.live
	if l == nil {
		t.mu.Unlock()
		return State{}, false
	}
	state := State{
		PublicKey:   l.config.PrivateKey.Public(),
		Addresses:   slices.Clone(l.config.Addresses),
		ListenPort:  l.port,
		MTU:         l.paths.inForce(),
		Stack:       l.stack.Kind(),
		StackReason: l.stackReason(),
		Since:       l.since,
	}
	if stack, ok := l.stack.(interface{ CongestionControl() string }); ok {
		state.CongestionControl = stack.CongestionControl()
	}
	t.mu.Unlock()
	// Without the lock, which a reload may want meanwhile.
	state.Peers = l.status()
	return state, true
}
