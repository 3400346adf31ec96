package line

import (
	"container/heap"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// End is one end of a line: a TUN device in a namespace.
type End struct {
	// Name of the device.
	Name string

	// Enter runs a function in the end's network namespace, on one thread.
	Enter func(func() error) error
}

// Config is a line between two ends.
type Config struct {
	A, B End

	// AtoB and BtoA are what the two directions do.
	AtoB, BtoA Impairment

	// Seed makes the random decisions repeatable.
	Seed uint64
}

// deviceMTU is the TUN devices' own MTU: that of Ethernet, which a host takes
// for its first hop's.
const deviceMTU = 1500

// Line is a running line.
type Line struct {
	aToB, bToA *direction
	running    sync.WaitGroup
}

// New makes the two devices, up but without addresses, and starts the line.
func New(config Config) (*Line, error) {
	if err := errors.Join(config.AtoB.Check(), config.BtoA.Check()); err != nil {
		return nil, err
	}
	a, err := openTUN(config.A)
	if err != nil {
		return nil, err
	}
	b, err := openTUN(config.B)
	if err != nil {
		a.Close()
		return nil, err
	}
	start := time.Now()
	l := &Line{
		aToB: newDirection(a, b, start, newScheduler(config.AtoB, config.Seed)),
		bToA: newDirection(b, a, start, newScheduler(config.BtoA, config.Seed+1)),
	}
	for _, d := range []*direction{l.aToB, l.bToA} {
		l.running.Add(2)
		go func() {
			defer l.running.Done()
			d.read()
		}()
		go func() {
			defer l.running.Done()
			d.deliver()
		}()
	}
	return l, nil
}

// Change puts other impairments in force from now on.
func (l *Line) Change(aToB, bToA Impairment) error {
	if err := errors.Join(aToB.Check(), bToA.Check()); err != nil {
		return err
	}
	l.aToB.change(aToB)
	l.bToA.change(bToA)
	return nil
}

// Counters are what each direction has counted so far.
func (l *Line) Counters() (aToB, bToA Counters) { return l.aToB.counted(), l.bToA.counted() }

// Close removes the devices and waits until nothing of the line runs.
func (l *Line) Close() error {
	err := errors.Join(l.aToB.from.Close(), l.bToA.from.Close())
	l.aToB.stop()
	l.bToA.stop()
	l.running.Wait()
	return err
}

func openTUN(end End) (file *os.File, err error) {
	err = end.Enter(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "/dev/net/tun")
		request, err := unix.NewIfreq(end.Name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return err
		}
		return setUp(end.Name)
	})
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, fmt.Errorf("making TUN device %s: %w", end.Name, err)
	}
	return file, nil
}

// setUp brings a device of this thread's namespace up. Its queue is long: what
// is dropped is for the emulator to decide.
func setUp(name string) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint32(10000)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFTXQLEN, request); err != nil {
		return err
	}
	request.SetUint32(deviceMTU)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFMTU, request); err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request)
}

// direction carries packets one way.
type direction struct {
	from, to *os.File
	start    time.Time

	mu        sync.Mutex
	wake      sync.Cond
	scheduler *scheduler
	waiting   waiting
	sequence  uint64
	stopped   bool
}

func newDirection(from, to *os.File, start time.Time, scheduler *scheduler) *direction {
	d := &direction{from: from, to: to, start: start, scheduler: scheduler}
	d.wake.L = &d.mu
	return d
}

func (d *direction) change(impairment Impairment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.scheduler.change(impairment)
}

func (d *direction) counted() Counters {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.scheduler.counters
}

func (d *direction) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = true
	d.wake.Broadcast()
}

// read takes packets from the device as fast as they come.
func (d *direction) read() {
	buf := make([]byte, 65536)
	for {
		n, err := d.from.Read(buf)
		if err != nil {
			return
		}
		d.offer(time.Since(d.start), buf[:n])
	}
}

func (d *direction) offer(now time.Duration, packet []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	mtu := d.scheduler.impairment.MTU
	if mtu == 0 || len(packet) <= mtu {
		d.enqueue(now, packet)
		return
	}
	if mayFragment(packet) {
		for _, part := range fragment(packet, mtu) {
			d.enqueue(now, part)
		}
		return
	}
	d.scheduler.counters.TooLarge++
	if d.scheduler.impairment.NoICMP {
		return
	}
	if notice := tooBig(packet, mtu); notice != nil {
		// To the sender at once: the error is its own gateway's. A device
		// that is going away needs none.
		_, _ = d.from.Write(notice)
	}
}

// enqueue gives the packet its time. d.mu is held.
func (d *direction) enqueue(now time.Duration, packet []byte) {
	times := d.scheduler.offer(now, len(packet))
	for _, at := range times.at[:times.n] {
		kept := packets.Get().(*[]byte)
		*kept = append((*kept)[:0], packet...)
		d.sequence++
		heap.Push(&d.waiting, delivery{at: at, sequence: d.sequence, packet: kept})
		if len(d.waiting) == 1 {
			d.wake.Signal()
		}
	}
}

var packets = sync.Pool{New: func() any {
	packet := make([]byte, 0, 2048)
	return &packet
}}

// nap bounds one sleep, because a packet may come that is due before the one
// that is slept for.
const nap = 500 * time.Microsecond

// late is from when a delivery counts as late.
const late = time.Millisecond

// deliver writes each packet to the other device when its time has come. It
// sleeps in the kernel rather than in Go's timers, whose resolution is a
// millisecond when the process is idle.
func (d *direction) deliver() {
	runtime.LockOSThread() // for its timer slack; the thread ends with us
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	var due []delivery
	for {
		d.mu.Lock()
		for len(d.waiting) == 0 && !d.stopped {
			d.wake.Wait()
		}
		if d.stopped {
			d.mu.Unlock()
			return
		}
		now := time.Since(d.start)
		due = due[:0]
		for len(d.waiting) > 0 && d.waiting[0].at <= now {
			next := heap.Pop(&d.waiting).(delivery)
			if lateness := now - next.at; lateness > 0 {
				c := &d.scheduler.counters
				c.LatestDelivery = max(c.LatestDelivery, lateness)
				if lateness > late {
					c.DelayedDeliveries++
				}
			}
			due = append(due, next)
		}
		var sleep time.Duration
		if len(due) == 0 {
			sleep = min(nap, d.waiting[0].at-now)
		}
		d.mu.Unlock()

		for _, packet := range due {
			// The other end's device may be gone already.
			_, _ = d.to.Write(*packet.packet)
			packets.Put(packet.packet)
		}
		if sleep > 0 {
			ts := unix.NsecToTimespec(int64(sleep))
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
		}
	}
}

// delivery is a packet on the way.
type delivery struct {
	at       time.Duration
	sequence uint64 // keeps the order of equal times
	packet   *[]byte
}

// waiting is a heap of deliveries by time.
type waiting []delivery

func (w waiting) Len() int { return len(w) }
func (w waiting) Less(i, j int) bool {
	if w[i].at != w[j].at {
		return w[i].at < w[j].at
	}
	return w[i].sequence < w[j].sequence
}
func (w waiting) Swap(i, j int) { w[i], w[j] = w[j], w[i] }
func (w *waiting) Push(x any)   { *w = append(*w, x.(delivery)) }
func (w *waiting) Pop() any {
	old := *w
	last := old[len(old)-1]
	*w = old[:len(old)-1]
	return last
}
