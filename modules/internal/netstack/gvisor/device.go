package gvisor

import (
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

const (
	// batchSize is how many packets one Read or Write of the device carries.
	// It is wireguard-go's ideal (conn.IdealBatchSize).
	batchSize = 128

	// unusualQueue bounds the incoming packets that wait for the goroutine
	// that takes what is neither plain TCP nor plain UDP. A datagram of 64 KiB
	// comes in some fifty fragments.
	unusualQueue = 512
)

// device is the TUN that wireguard-go reads and writes.
//
// Write never waits for Read: TCP segments are queued to the stack's own
// goroutines and datagrams to their sockets, the resets for closed ports do
// not wait (see mayWait), and everything else, whose handling may answer at
// once or take a connection's lock, goes to a goroutine of the device.
type device struct {
	name  string
	link  *link
	close func() error

	// readMu keeps a second reader out; wireguard-go has one.
	readMu  sync.Mutex
	segment segmenter

	// writeMu is read-locked by Write and locked by stop, so that no packet
	// enters a stack that is being taken apart.
	writeMu sync.RWMutex
	stopped bool
	batches sync.Pool

	unusual     chan []byte
	unusualDone chan struct{}

	// lost counts packets for unusual that found it full.
	lost atomic.Uint64

	events *netstack.Events
}

func newDevice(name string, link *link, close func() error) *device {
	d := &device{
		name:        name,
		link:        link,
		close:       close,
		unusual:     make(chan []byte, unusualQueue),
		unusualDone: make(chan struct{}),
		events:      netstack.NewEvents(),
	}
	d.batches.New = func() any { return new(coalescer) }
	go d.deliverUnusual()
	return d
}

// Read waits for packets of the stack and fills as many buffers as there are
// packets, from offset on.
func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.readMu.Lock()
	defer d.readMu.Unlock()
	out := d.link.out
	for {
		n := 0
		for n < len(bufs) {
			if !d.segment.active() {
				pkt := out.pop()
				if pkt == nil {
					break
				}
				d.segment.start(pkt, int(d.link.mtu.Load()))
			}
			if size := d.segment.next(bufs[n][offset:]); size > 0 {
				sizes[n] = size
				n++
			}
		}
		if n > 0 || len(bufs) == 0 {
			return n, nil
		}
		if !out.wait() {
			d.segment.release()
			return 0, os.ErrClosed
		}
	}
}

// Write hands packets to the stack and returns how many there were. It keeps
// none of the buffers.
func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	d.writeMu.RLock()
	defer d.writeMu.RUnlock()
	if d.stopped {
		return 0, os.ErrClosed
	}
	dispatcher := d.link.dispatcher.Load()
	if dispatcher == nil {
		return len(bufs), nil
	}
	batch := d.batches.Get().(*coalescer)
	batch.dispatcher = *dispatcher
	for _, buf := range bufs {
		if offset > len(buf) {
			continue
		}
		if packet := buf[offset:]; !batch.add(packet) {
			d.queueUnusual(packet)
		}
	}
	batch.flush()
	d.batches.Put(batch)
	return len(bufs), nil
}

func (d *device) queueUnusual(packet []byte) {
	if ipVersion(packet) == 0 {
		return
	}
	select {
	case d.unusual <- append([]byte(nil), packet...):
	default:
		d.lost.Add(1)
	}
}

// deliverUnusual hands over what Write did not, until the device stops.
func (d *device) deliverUnusual() {
	defer close(d.unusualDone)
	for packet := range d.unusual {
		dispatcher := d.link.dispatcher.Load()
		if dispatcher == nil {
			continue
		}
		switch ipVersion(packet) {
		case header.IPv4Version:
			deliver(*dispatcher, header.IPv4ProtocolNumber, packet, len(packet))
		case header.IPv6Version:
			knowUnreachable(packet)
			deliver(*dispatcher, header.IPv6ProtocolNumber, packet, len(packet))
		}
	}
}

// knowUnreachable turns a message that a destination cannot be reached into
// the kind that the stack acts on. Of ICMPv6's reasons (RFC 4443, section 3.1)
// it knows "no route" and "port"; a home's router says "address" when a
// machine is off, and the dial is to fail then and not to time out.
func knowUnreachable(packet []byte) {
	const at = header.IPv6MinimumSize
	if len(packet) < at+header.ICMPv6DstUnreachableMinimumSize || packet[6] != uint8(header.ICMPv6ProtocolNumber) {
		return
	}
	icmp := header.ICMPv6(packet[at:])
	code := icmp.Code()
	if icmp.Type() != header.ICMPv6DstUnreachable || code == header.ICMPv6NetworkUnreachable || code == header.ICMPv6PortUnreachable {
		return
	}
	icmp.SetCode(header.ICMPv6NetworkUnreachable)
	// RFC 1624, equation 3, for a field that becomes 0.
	icmp.SetChecksum(^checksum.Combine(^icmp.Checksum(), ^uint16(code)))
}

// stop ends Write and the device's goroutine.
func (d *device) stop() {
	d.writeMu.Lock()
	stopped := d.stopped
	d.stopped = true
	d.writeMu.Unlock()
	if !stopped {
		close(d.unusual)
	}
	<-d.unusualDone
}

// setMTU changes the MTU and tells wireguard-go, which pads up to it.
func (d *device) setMTU(mtu int) {
	if d.link.mtu.Swap(uint32(mtu)) != uint32(mtu) {
		d.events.MTUChanged()
	}
}

// Close closes the whole stack, however often it is called.
func (d *device) Close() error { return d.close() }

// File is nil: there is no descriptor behind the device.
func (d *device) File() *os.File { return nil }

// MTU returns the size of the largest packet.
func (d *device) MTU() (int, error) { return int(d.link.mtu.Load()), nil }

// Name returns the configured name.
func (d *device) Name() (string, error) { return d.name, nil }

// Events returns the channel of MTU changes.
func (d *device) Events() <-chan tun.Event { return d.events.C() }

// BatchSize returns how many packets one Read or Write carries.
func (d *device) BatchSize() int { return batchSize }

var _ tun.Device = (*device)(nil)
