package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/gvisor"
)

// wire is a UDP line between two WireGuard ends that takes its time. Each end
// speaks to a socket of its own and hears from it what the other one says.
type wire struct {
	sockets [2]*net.UDPConn
	ends    [2]netip.AddrPort

	// delay is how long a datagram takes.
	delay time.Duration

	// route, if not nil, has each datagram instead, and delivers it when it
	// likes, or never.
	route func(from int, datagram []byte, deliver func())

	done sync.WaitGroup
}

// underway is a datagram on a wire.
type underway struct {
	datagram []byte
	due      time.Time
}

// newWire makes a wire between the ends that listen on two ports of this host.
// It carries nothing before it is started.
func newWire(t testing.TB, ports [2]uint16) *wire {
	t.Helper()
	w := new(wire)
	for i := range 2 {
		w.sockets[i] = openLoopback(t)
		w.ends[i] = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ports[i])
	}
	t.Cleanup(func() {
		w.sockets[0].Close()
		w.sockets[1].Close()
		w.done.Wait()
	})
	return w
}

// address is where one end finds the other.
func (w *wire) address(end int) string { return w.sockets[end].LocalAddr().String() }

func (w *wire) start() {
	for from := range 2 {
		queue := make(chan underway, 1024)
		w.done.Go(func() {
			defer close(queue)
			w.read(from, queue)
		})
		w.done.Go(func() {
			for u := range queue {
				time.Sleep(time.Until(u.due))
				w.deliver(1-from, u.datagram)
			}
		})
	}
}

func (w *wire) read(from int, queue chan<- underway) {
	buf := make([]byte, 1<<16)
	for {
		n, sender, err := w.sockets[from].ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || sender != w.ends[from] {
			continue
		}
		datagram := slices.Clone(buf[:n])
		if w.route != nil {
			w.route(from, datagram, func() { w.deliver(1-from, datagram) })
			continue
		}
		queue <- underway{datagram, time.Now().Add(w.delay)}
	}
}

func (w *wire) deliver(to int, datagram []byte) {
	w.sockets[to].WriteToUDPAddrPort(datagram, w.ends[to])
}

// end is one end of a wire.
type end struct {
	stack  netstack.Stack
	device *device.Device
	peer   *device.Peer // the other end
}

// stockEnd is wireguard-go as it comes, without what this package adds to it.
func stockEnd(t testing.TB, config *Config) *end {
	t.Helper()
	stack, err := gvisor.New(gvisor.Config{Name: "stock", MTU: startMTU(config), Addresses: config.Addresses})
	if err != nil {
		t.Fatal(err)
	}
	dev := device.NewDevice(stack.Device(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(func() {
		stack.Close()
		dev.Close()
	})
	if err := dev.IpcSet(fmt.Sprintf("listen_port=%d\n", config.ListenPort) + changes(nil, config)); err != nil {
		t.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}
	return newEnd(stack, dev, config)
}

// ourEnd is an end as users have it.
func ourEnd(t testing.TB, config *Config, logger *zap.Logger) *end {
	t.Helper()
	tunnel := New("ours")
	c := tunnel.Claim(config, logger)
	t.Cleanup(func() { c.Release() })
	if err := c.Prepare(); err != nil {
		t.Fatal(err)
	}
	return newEnd(tunnel.live.stack, tunnel.live.device, config)
}

func newEnd(stack netstack.Stack, dev *device.Device, config *Config) *end {
	return &end{stack, dev, dev.LookupPeer(device.NoisePublicKey(config.Peers[0].PublicKey))}
}

// wiredConfigs are two configurations that fit each other, and the wire between
// them. Home calls the relay, and the other way round if known.
func wiredConfigs(t testing.TB, known bool) ([2]*Config, *wire) {
	t.Helper()
	relay, home := ends(t)
	relay.Stack, home.Stack = StackGvisor, StackGvisor
	home.ListenPort = freePort(t)
	home.Peers[0].PersistentKeepalive = 0
	w := newWire(t, [2]uint16{relay.ListenPort, home.ListenPort})
	home.Peers[0].Endpoint = w.address(1)
	if known {
		relay.Peers[0].Endpoint = w.address(0)
	}
	return [2]*Config{relay, home}, w
}

// wiredPort is where both ends of a wire hear.
const wiredPort = 9

var wiredAddresses = [2]netip.Addr{relayAddress, homeAddress}

// wiredSockets are sockets at both ends of a wire, and where the other one is.
func wiredSockets(t testing.TB, ends [2]*end) (sockets [2]netstack.UDPConn, others [2]net.Addr) {
	t.Helper()
	for i, end := range ends {
		socket, err := end.stack.ListenUDP(netip.AddrPortFrom(wiredAddresses[i], wiredPort))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { socket.Close() })
		sockets[i] = socket
		others[1-i] = net.UDPAddrFromAddrPort(netip.AddrPortFrom(wiredAddresses[i], wiredPort))
	}
	return sockets, others
}
