package gvisor

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Reset resets the connections to some addresses, as netstack.Stack says.
func (s *Stack) Reset(is func(netip.Addr) bool) (count int) {
	for _, endpoint := range s.stack.RegisteredEndpoints() {
		known, ok := endpoint.(interface{ Info() tcpip.EndpointInfo })
		if !ok {
			continue
		}
		info, ok := known.Info().(*stack.TransportEndpointInfo)
		if !ok {
			continue
		}
		remote, ok := netip.AddrFromSlice(info.ID.RemoteAddress.AsSlice())
		if !ok || !is(remote.Unmap()) {
			continue // a listener has no other end
		}
		endpoint.Abort()
		count++
	}
	return count
}
