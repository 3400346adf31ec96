package gvisor

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Reset resets the connections between some addresses, as netstack.Stack says.
func (s *Stack) Reset(is func(local, remote netip.Addr) bool) (count int) {
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
		if !ok {
			continue // a listener has no other end
		}
		local, _ := netip.AddrFromSlice(info.ID.LocalAddress.AsSlice())
		if !is(local.Unmap(), remote.Unmap()) {
			continue
		}
		endpoint.Abort()
		count++
	}
	return count
}
