// Package gvisor is the TCP/IP stack that works wherever Go does: gVisor's,
// behind a TUN device and a link endpoint of our own. It is the only package
// that touches gVisor.
//
// Data flows like this:
//
//	conn.Write → TCP → link.WritePackets → outQueue → device.Read → wireguard-go
//	conn.Read  ← TCP ← coalescer         ←            device.Write ← wireguard-go
//
// Outgoing superpackets are cut into segments right into wireguard-go's
// buffers; incoming segments are joined before the stack sees them. When the
// queue is full, senders wait. Only they wait: Write never does.
package gvisor

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// Tunables.
const (
	// A send buffer follows twice the congestion window, which is what the
	// path can hold; beyond that, unsent data would only be delay. The most is
	// what 1 Gbit/s over 48 ms needs.
	sendBufferDefault = 256 << 10
	sendBufferMax     = 6 << 20

	// A receive buffer grows with what the reader takes in a round trip. Half
	// of it is the window. A connection whose reader is slow stays at the
	// default, so that a thousand of them fit in a small machine.
	receiveBufferDefault = 512 << 10
	receiveBufferMax     = 8 << 20

	// datagramBuffer is how much a UDP socket holds for a reader that is late,
	// and how much it may send before it waits.
	datagramBuffer = 512 << 10

	// timeWaitTimeout is how long the side that closed first remembers a
	// connection, to answer a FIN that comes again and to know late segments.
	// A memory costs 8 KiB here, so that the usual 60 s at 500 connections in
	// a second would be 240 MB; what is older than 10 s is kept apart by
	// timestamps (RFC 7323, section 5).
	timeWaitTimeout = 10 * time.Second

	// flushTimeout bounds how long Close waits for the last resets to be read
	// from the device.
	flushTimeout = 250 * time.Millisecond

	// nicID is the number of the one interface.
	nicID = 1
)

// CongestionControl is how the stack's TCP sends, by the kernel's name for it.
const CongestionControl = "cubic"

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

	// Logger gets the rare messages. If nil, there are none.
	Logger *zap.Logger
}

// Stack is a gVisor stack behind a device. Make one with New.
type Stack struct {
	stack  *stack.Stack
	link   *link
	device *device
	logger *zap.Logger

	// addressesMu serializes changes of addresses and MTU.
	addressesMu sync.Mutex
	addresses   atomic.Pointer[[]netip.Prefix]

	// openMu is read-locked while a socket is made and locked to close, so
	// that the stack gets no new sockets while it ends.
	openMu sync.RWMutex
	closed bool

	closeOnce sync.Once
}

// quiet keeps gVisor's own messages, about packets of peers, from stderr.
var quiet sync.Once

// New makes a stack and its device. Nothing flows until somebody reads and
// writes the device.
func New(config Config) (netstack.Stack, error) {
	s, err := newStack(config)
	if err != nil {
		return nil, fmt.Errorf("creating gvisor stack %q: %w", config.Name, err)
	}
	return s, nil
}

func newStack(config Config) (*Stack, error) {
	if err := netstack.CheckMTU(config.MTU); err != nil {
		return nil, err
	}
	quiet.Do(func() {
		// Rate-limited loggers keep the target of the time they were made at.
		log.SetLevel(log.Warning)
		log.SetTarget(&log.MultiEmitter{})
	})

	s := &Stack{logger: config.Logger}
	if s.logger == nil {
		s.logger = zap.NewNop()
	}
	s.addresses.Store(new([]netip.Prefix))
	s.link = &link{out: newOutQueue()}
	s.link.mtu.Store(uint32(config.MTU))
	s.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			// A tunnel has no neighbours to ask and no router to believe.
			ipv6.NewProtocolWithOptions(ipv6.Options{
				NDPConfigs: ipv6.NDPConfigurations{HandleRAs: ipv6.HandlingRAsDisabled},
			}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
		// A dial to an own address stays inside, and packets that come in from
		// one are dropped.
		HandleLocal: true,
	})
	s.device = newDevice(config.Name, s.link, s.Close)
	if err := s.configure(config); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stack) configure(config Config) error {
	if err := s.setOptions(); err != nil {
		return err
	}
	if err := s.stack.CreateNICWithOptions(nicID, s.link, stack.NICOptions{QDisc: s.link}); err != nil {
		return errno(err)
	}
	// A connection may have a source that is none of our addresses: that of
	// the client on whose behalf it is made. Packets to such an address are
	// taken only for as long as a connection has it.
	if err := s.stack.SetSpoofing(nicID, true); err != nil {
		return errno(err)
	}
	return s.SetAddresses(config.Addresses)
}

// setOptions applies the tunables.
func (s *Stack) setOptions() error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	congestion := tcpip.CongestionControlOption(CongestionControl)
	// Ports come round again before their time is over when a relay makes
	// thousands of connections to one address in a second.
	reuse := tcpip.TCPTimeWaitReuseOption(tcpip.TCPTimeWaitReuseGlobal)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(timeWaitTimeout)
	// RACK (RFC 8985) as gVisor has it takes segments for lost that are only
	// late (tailscale/tailscale#9707). At 0.01 % loss it sent twice as much
	// again as was lost, and was not faster at any rate of loss.
	recovery := tcpip.TCPRecovery(0)
	sendBuffer := tcpip.TCPSendBufferSizeRangeOption{
		Min: tcp.MinBufferSize, Default: sendBufferDefault, Max: sendBufferMax,
	}
	receiveBuffer := tcpip.TCPReceiveBufferSizeRangeOption{
		Min: tcp.MinBufferSize, Default: receiveBufferDefault, Max: receiveBufferMax,
	}
	for _, option := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &congestion, &reuse, &timeWait, &recovery, &sendBuffer, &receiveBuffer,
	} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fmt.Errorf("setting %T: %w", option, errno(err))
		}
	}
	for _, option := range []any{
		tcpip.SendBufferSizeOption{Min: tcp.MinBufferSize, Default: datagramBuffer, Max: sendBufferMax},
		tcpip.ReceiveBufferSizeOption{Min: tcp.MinBufferSize, Default: datagramBuffer, Max: receiveBufferMax},
	} {
		if err := s.stack.SetOption(option); err != nil {
			return fmt.Errorf("setting %T: %w", option, errno(err))
		}
	}
	return nil
}

// Device is the TUN for wireguard-go.
func (s *Stack) Device() tun.Device { return s.device }

// Kind is "gvisor".
func (s *Stack) Kind() string { return "gvisor" }

// Dropped returns how many outgoing packets were thrown away because nobody
// read the device, and how many incoming ones because the stack was late. Both
// stay 0 on a device that is read.
func (s *Stack) Dropped() (out, in uint64) {
	return s.link.out.dropped.Load(), s.device.lost.Load()
}

// Close resets every connection, lets the resets leave if the device is read,
// closes every listener and the device, and waits until nothing runs any more.
func (s *Stack) Close() error {
	s.closeOnce.Do(func() {
		s.openMu.Lock()
		s.closed = true
		s.openMu.Unlock()

		s.device.stop()
		s.stack.Close()
		s.flush()
		s.link.out.close()

		// A connection that a peer began while the sockets were closed is
		// closed by a second round, when nothing can begin one any more.
		s.stack.TransportProtocolInstance(tcp.ProtocolNumber).Wait()
		s.stack.Close()
		s.stack.Wait()

		s.device.readMu.Lock()
		s.device.segment.release()
		s.link.out.drain()
		s.device.readMu.Unlock()
		s.device.events.Close()
	})
	return nil
}

// flush waits until the device's reader has taken everything, or for
// flushTimeout.
func (s *Stack) flush() {
	deadline := time.Now().Add(flushTimeout)
	for !s.link.out.empty() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
}

// open makes a socket with make unless the stack is closed.
func (s *Stack) open(make func() error) error {
	s.openMu.RLock()
	defer s.openMu.RUnlock()
	if s.closed {
		return net.ErrClosed
	}
	return make()
}

var _ netstack.Stack = (*Stack)(nil)
