package vnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a network namespace with a TUN in it.
type machine struct {
	tun *os.File
	do  chan func()
}

// newMachine makes a namespace, which ends with the test, whose TUN has the
// addresses and speaks with the header.
func newMachine(t *testing.T, mtu int, addresses ...string) *machine {
	t.Helper()
	m := &machine{do: make(chan func())}
	ready := make(chan error)
	go func() {
		// The thread is of no use to others, so it ends with the goroutine.
		runtime.LockOSThread()
		ready <- m.setUp(mtu, addresses)
		for f := range m.do {
			f()
		}
	}()
	t.Cleanup(func() { close(m.do) })
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.tun.Close() })
	return m
}

func (m *machine) setUp(mtu int, addresses []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("opening the TUN: %w", err)
	}
	request, err := unix.NewIfreq("tun0")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("creating the TUN: %w", err)
	}
	m.tun = os.NewFile(uintptr(fd), "tun0")
	if err := m.offload(0); err != nil {
		return err
	}
	commands := fmt.Sprintf("link set tun0 up mtu %d\n", mtu)
	for _, address := range addresses {
		commands += "address add " + address + " dev tun0 nodad\n"
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("setting up the TUN: %w: %s", err, out)
	}
	for _, address := range addresses {
		if prefix := netip.MustParsePrefix(address); prefix.Addr().Is6() {
			if err := waitForRoute(prefix.Addr()); err != nil {
				return err
			}
		}
	}
	// What both ends agree on, the sender marks as able to carry ECN.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_ecn", []byte("1"), 0); err != nil {
		return fmt.Errorf("switching ECN on: %w", err)
	}
	return nil
}

// waitForRoute waits until the thread's namespace takes packets to an address
// of its own: the kernel makes the route of one of IPv6 in the background.
func waitForRoute(address netip.Addr) error {
	route := fmt.Sprintf("%x 80 ", address.AsSlice())
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		routes, err := os.ReadFile("/proc/thread-self/net/ipv6_route")
		if err != nil {
			return err
		}
		if strings.Contains(string(routes), route) {
			return nil
		}
	}
	return fmt.Errorf("waiting for a route to %s: there is none", address)
}

// offload lets the kernel send superpackets of TCP and of what more says.
func (m *machine) offload(more int) error {
	raw, err := m.tun.SyscallConn()
	if err != nil {
		return err
	}
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	control := raw.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp|more) })
	if err := errors.Join(control, err); err != nil {
		return fmt.Errorf("setting the TUN's offloads: %w", err)
	}
	return nil
}

// in runs f inside the namespace.
func (m *machine) in(f func()) {
	done := make(chan struct{})
	m.do <- func() {
		defer close(done)
		f()
	}
	<-done
}

// count returns a number of /proc/net/snmp, such as "Tcp", "InCsumErrors".
func (m *machine) count(t *testing.T, group, name string) int {
	t.Helper()
	var text []byte
	m.in(func() { text, _ = os.ReadFile("/proc/thread-self/net/snmp") })
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i := range names {
			if names[i] == name {
				n, err := strconv.Atoi(fields[i])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatalf("there is no number %s of %s", name, group)
	return 0
}

// changeEvery is how many large packets pass a cable unchanged, plus one.
const changeEvery = 500

// cable carries packets from one machine to another, as a tunnel would.
type cable struct {
	from, to *machine
	mtu      atomic.Int64

	// change, if not nil, changes one of changeEvery packets, of the large ones.
	change func(packet []byte)

	// The following may be read when run has ended. What came: frames,
	// superpackets of TCP, those of them with CWR, those of UDP; the size of
	// the largest packet and how many were changed; and how many frames with
	// more than one packet were written.
	frames, tcp, cwr, udp   int
	largest, large, changed int
	joined                  int
}

// run ends when the reads of the TUN have a deadline and it is over.
func (c *cable) run() error {
	frame := make([]byte, HeaderLen+maxPacket)
	batch := make([][]byte, 128)
	for i := range batch {
		batch[i] = make([]byte, 2048)
	}
	raw, err := c.to.tun.SyscallConn()
	if err != nil {
		return err
	}
	var cutter Segmenter
	var joiner Coalescer
	write := func(pieces [][]byte) error {
		if len(pieces) > 2 {
			c.joined++
		}
		var err error
		if control := raw.Write(func(fd uintptr) bool {
			_, err = unix.Writev(int(fd), pieces)
			return !errors.Is(err, unix.EAGAIN)
		}); control != nil {
			return control
		}
		return err
	}
	for {
		n, err := c.from.tun.Read(frame)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		mtu := int(c.mtu.Load())
		if err := cutter.Start(frame[:n], mtu); err != nil {
			return err
		}
		c.frames++
		switch kind := frame[1]; {
		case kind == gsoUDP:
			c.udp++
		case kind&gsoECN != 0:
			c.cwr++
			fallthrough
		case kind != gsoNone:
			c.tcp++
		}
		for i := 0; cutter.Active() && i < len(batch); i++ {
			size := cutter.Next(batch[i])
			if size == 0 {
				return errors.New("a packet does not fit its buffer")
			}
			c.largest = max(c.largest, size)
			if c.change != nil && size > 1000 {
				if c.large++; c.large%changeEvery == 0 {
					c.change(batch[i][:size])
					c.changed++
				}
			}
			joiner.Add(batch[i][:size])
		}
		if err := joiner.Frames(write); err != nil {
			return fmt.Errorf("writing to the TUN: %w", err)
		}
		joiner.Reset()
	}
}

// connect joins two machines by a cable for each direction, of which the first
// may change packets, until the function that it returns is called.
func connect(t *testing.T, a, b *machine, mtu int, change func([]byte)) (there, back *cable, end func()) {
	t.Helper()
	there, back = &cable{from: a, to: b, change: change}, &cable{from: b, to: a}
	var cables sync.WaitGroup
	for _, c := range []*cable{there, back} {
		c.mtu.Store(int64(mtu))
		cables.Go(func() {
			if err := c.run(); err != nil {
				t.Errorf("the cable broke: %v", err)
			}
		})
	}
	end = sync.OnceFunc(func() {
		a.tun.SetReadDeadline(time.Unix(1, 0))
		b.tun.SetReadDeadline(time.Unix(1, 0))
		cables.Wait()
	})
	t.Cleanup(end)
	return there, back, end
}

// dial connects from inside a machine, on its own thread: net.Dial may use
// another one.
func dial(m *machine, to *net.TCPAddr) (*os.File, error) {
	domain := unix.AF_INET6
	var address unix.Sockaddr = &unix.SockaddrInet6{Port: to.Port, Addr: [16]byte(to.IP.To16())}
	if ip := to.IP.To4(); ip != nil {
		domain = unix.AF_INET
		address = &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(ip)}
	}
	var file *os.File
	var err error
	m.in(func() {
		var fd int
		if fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.Connect(fd, address); err != nil {
			unix.Close(fd)
			return
		}
		unix.SetNonblock(fd, true)
		file = os.NewFile(uintptr(fd), "tcp")
	})
	return file, err
}
