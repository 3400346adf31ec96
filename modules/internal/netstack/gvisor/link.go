package gvisor

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is the stack's side of the device: the stack.LinkEndpoint that queues
// what goes out. Incoming packets do not pass it; the device hands them to the
// dispatcher.
type link struct {
	mtu        atomic.Uint32
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	out        *outQueue
}

// WritePacket queues a packet, and waits for room if the packet may wait. That
// the link is its own queueing discipline saves the list, and its allocation,
// that WritePackets is given for each packet.
func (l *link) WritePacket(pkt *stack.PacketBuffer) tcpip.Error {
	if l.out.push(pkt, mayWait(pkt)) {
		return nil
	}
	if l.out.closed.Load() {
		return &tcpip.ErrClosedForSend{}
	}
	return &tcpip.ErrNoBufferSpace{}
}

// WritePackets queues packets one by one.
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	for n, pkt := range packets.AsSlice() {
		if err := l.WritePacket(pkt); err != nil {
			return n, err
		}
	}
	return packets.Len(), nil
}

// MTU is the size of the largest packet in the tunnel.
func (l *link) MTU() uint32 { return l.mtu.Load() }

// SetMTU changes what MTU returns.
func (l *link) SetMTU(mtu uint32) { l.mtu.Store(mtu) }

// Capabilities lets the stack skip checksums of what arrives: WireGuard has
// authenticated every packet. Checksums of what leaves are the stack's own
// work, except for superpackets.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// GSOMaxSize bounds superpackets; a connection reads it when it begins.
func (l *link) GSOMaxSize() uint32 { return gsoMaxSize(int(l.mtu.Load())) }

// SupportedGSO says that TCP may send superpackets, with the sum of the
// pseudo-header alone in place of the checksum.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// Attach sets who gets incoming packets; nil detaches.
func (l *link) Attach(dispatcher stack.NetworkDispatcher) {
	if dispatcher == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&dispatcher)
}

// IsAttached says whether anybody gets incoming packets.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// A tunnel has no link layer: the rest of the interface is empty.

func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}

var (
	_ stack.LinkEndpoint       = (*link)(nil)
	_ stack.GSOEndpoint        = (*link)(nil)
	_ stack.QueueingDiscipline = (*link)(nil)
)
