package line

import (
	"errors"
	"fmt"
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
	a, b       int // the TUN devices
	stop       int // an eventfd: readable once the line is to end
}

// spareThreads are more than a line's two threads, so that they find one of
// Go's processors at once whenever they come back from the kernel.
const spareThreads = 16

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
		return nil, errors.Join(err, unix.Close(a))
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(err, unix.Close(a), unix.Close(b))
	}
	if runtime.GOMAXPROCS(0) < spareThreads {
		runtime.GOMAXPROCS(spareThreads)
	}
	start := time.Now()
	l := &Line{
		aToB: &direction{from: a, to: b, stop: stop, start: start, scheduler: newScheduler(config.AtoB, config.Seed)},
		bToA: &direction{from: b, to: a, stop: stop, start: start, scheduler: newScheduler(config.BtoA, config.Seed+1)},
		a:    a, b: b, stop: stop,
	}
	for _, d := range []*direction{l.aToB, l.bToA} {
		l.running.Add(1)
		go func() {
			defer l.running.Done()
			d.run()
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

// Restart puts impairments in force with random decisions and counters that
// begin anew from a seed. What is on the way arrives.
func (l *Line) Restart(aToB, bToA Impairment, seed uint64) error {
	if err := errors.Join(aToB.Check(), bToA.Check()); err != nil {
		return err
	}
	l.aToB.restart(newScheduler(aToB, seed))
	l.bToA.restart(newScheduler(bToA, seed+1))
	return nil
}

// Counters are what each direction has counted so far.
func (l *Line) Counters() (aToB, bToA Counters) { return l.aToB.counted(), l.bToA.counted() }

// Close waits until nothing of the line runs and removes the devices.
func (l *Line) Close() error {
	_, err := unix.Write(l.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	l.running.Wait()
	return errors.Join(err, unix.Close(l.a), unix.Close(l.b), unix.Close(l.stop))
}

func openTUN(end End) (fd int, err error) {
	err = end.Enter(func() error {
		var err error
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(end.Name)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err == nil {
			err = setUp(end.Name)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("making TUN device %s: %w", end.Name, err)
	}
	return fd, nil
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

// direction carries packets one way, on a thread of its own that sleeps in the
// kernel until a packet comes or is due. Go's own timers and poller would be
// too late by up to a millisecond.
type direction struct {
	from, to, stop int
	start          time.Time

	mu        sync.Mutex // guards the scheduler, which others change and ask
	scheduler *scheduler

	waiting  waiting
	sequence uint64
	spare    []*[]byte // packets' buffers to use again
}

func (d *direction) change(impairment Impairment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.scheduler.change(impairment)
}

func (d *direction) restart(s *scheduler) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.free, s.last = d.scheduler.free, d.scheduler.last
	d.scheduler = s
}

func (d *direction) counted() Counters {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.scheduler.counters
}

func (d *direction) run() {
	runtime.LockOSThread() // for what follows; the thread ends with this goroutine
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	// A line does not wait for a CPU. Where this is not allowed, figures are
	// worth less on a busy machine.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 10}, 0)

	buf := make([]byte, 65536)
	for more := false; !d.rest(more); {
		more = d.read(buf)
		d.deliver()
	}
}

// read takes the packets that there are, and tells whether it has left some
// because others are due.
func (d *direction) read(buf []byte) (more bool) {
	for {
		n, err := unix.Read(d.from, buf)
		if err != nil {
			return false // there is none; a device that has gone ends the rest
		}
		now := time.Since(d.start)
		d.offer(now, buf[:n])
		if len(d.waiting) > 0 && d.waiting[0].at <= now-grain {
			return true
		}
	}
}

// grain is how often packets are looked for and delivered while there are any:
// many at once, since to wake for each would cost most of a CPU at 500 Mbit/s,
// and Linux stops a real-time thread that takes all of one. It is how late a
// packet may be.
const grain = 100 * time.Microsecond

// rest sleeps until there may be something to do, not at all if there is more to
// read, and tells whether the line is to end.
func (d *direction) rest(more bool) (end bool) {
	fds := []unix.PollFd{{Fd: int32(d.stop), Events: unix.POLLIN}, {Fd: int32(d.from), Events: unix.POLLIN}}
	var timeout *unix.Timespec
	if len(d.waiting) > 0 {
		// What arrives meanwhile is read at the end of the grain.
		fds = fds[:1]
		ts := unix.NsecToTimespec(int64(grain))
		if more {
			ts = unix.Timespec{}
		}
		timeout = &ts
	}
	if _, err := unix.Ppoll(fds, timeout, nil); err != nil && err != unix.EINTR {
		return true
	}
	return fds[0].Revents != 0
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
		// To the sender at once, as from its own gateway.
		_, _ = unix.Write(d.from, notice)
	}
}

// enqueue gives the packet its time. d.mu is held.
func (d *direction) enqueue(now time.Duration, packet []byte) {
	times := d.scheduler.offer(now, len(packet))
	for _, at := range times.at[:times.n] {
		kept := d.buffer()
		*kept = append((*kept)[:0], packet...)
		d.sequence++
		d.waiting.push(delivery{at: at, sequence: d.sequence, packet: kept})
	}
}

// buffer returns one that has been used before, if there is one. Once a
// direction has seen its fullest queue, it allocates nothing: a thread that
// allocates is made to help Go's garbage collector, which waits for other
// threads by yielding to them, and a real-time thread yields to nobody. Linux
// stopped it after 0.95 s, in which that CPU did nothing else.
func (d *direction) buffer() *[]byte {
	last := len(d.spare) - 1
	if last < 0 {
		packet := make([]byte, 0, deviceMTU)
		return &packet
	}
	packet := d.spare[last]
	d.spare = d.spare[:last]
	return packet
}

// late is from when a delivery counts as late.
const late = time.Millisecond

// deliver writes the packets whose time has come to the other device.
func (d *direction) deliver() {
	now := time.Since(d.start)
	var latest time.Duration
	var delayed uint64
	for len(d.waiting) > 0 && d.waiting[0].at <= now {
		next := d.waiting.pop()
		lateness := now - next.at
		latest = max(latest, lateness)
		if lateness > late {
			delayed++
		}
		// The other end's device may be down: then the packet is lost there.
		_, _ = unix.Write(d.to, *next.packet)
		d.spare = append(d.spare, next.packet)
	}
	if latest > 0 {
		d.mu.Lock()
		defer d.mu.Unlock()
		c := &d.scheduler.counters
		c.LatestDelivery = max(c.LatestDelivery, latest)
		c.DelayedDeliveries += delayed
	}
}

// delivery is a packet on the way.
type delivery struct {
	at       time.Duration
	sequence uint64 // keeps the order of equal times
	packet   *[]byte
}

// waiting is a heap of deliveries by time. (container/heap's would allocate for
// each; see buffer.)
type waiting []delivery

func (w waiting) less(i, j int) bool {
	if w[i].at != w[j].at {
		return w[i].at < w[j].at
	}
	return w[i].sequence < w[j].sequence
}

func (w *waiting) push(d delivery) {
	*w = append(*w, d)
	h := *w
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.less(i, parent) {
			return
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
}

// pop takes the earliest, of which there must be one.
func (w *waiting) pop() delivery {
	h := *w
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h[last] = delivery{}
	h = h[:last]
	*w = h
	for i := 0; ; {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(h) && h.less(child, least) {
				least = child
			}
		}
		if least == i {
			return first
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}
