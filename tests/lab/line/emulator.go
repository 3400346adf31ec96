package line

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// emulatorEnv makes a process of this program a line's emulator: New starts
// such processes.
const emulatorEnv = "HOMEWARD_LINE_EMULATOR"

func init() {
	if os.Getenv(emulatorEnv) == "" {
		return
	}
	if err := emulate(3, 4, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "line:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// request is what New's process says to the emulator, one JSON object after
// the other, each of which gets an answer. One without impairments only asks.
type request struct {
	AToB, BToA *Impairment
	Restart    bool
	Seed       uint64
}

type answer struct{ AToB, BToA Counters }

// spareThreads are more than a line's two threads, so that they find one of
// Go's processors at once whenever they come back from the kernel.
const spareThreads = 16

// emulate carries packets between two TUN devices until in ends.
//
// It is a process of its own, which collects no garbage and does nothing else:
// where Go's runtime waits for another thread, as when a goroutine comes back
// from the kernel while the collector looks at its stack, it yields, and a
// real-time thread yields to nobody. If the other thread has the same CPU,
// Linux has to stop the real-time one, after 0.95 s in which the CPU did nothing
// else, and every transfer of that second was a wrong figure.
func emulate(a, b int, in io.Reader, out io.Writer) error {
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(spareThreads)
	start := time.Now()
	aToB := &direction{from: a, to: b, start: start, scheduler: newScheduler(Impairment{}, 0)}
	bToA := &direction{from: b, to: a, start: start, scheduler: newScheduler(Impairment{}, 0)}
	for _, fd := range []int{a, b} {
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
	}
	go aToB.run()
	go bToA.run()

	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var r request
		if err := decoder.Decode(&r); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if r.AToB != nil && r.BToA != nil {
			aToB.set(*r.AToB, r.Restart, r.Seed)
			bToA.set(*r.BToA, r.Restart, r.Seed+1)
		}
		if err := encoder.Encode(answer{AToB: aToB.counted(), BToA: bToA.counted()}); err != nil {
			return err
		}
	}
}

// direction carries packets one way, on a thread of its own that sleeps in the
// kernel until a packet comes or is due. Go's own timers and poller would be
// too late by up to a millisecond.
type direction struct {
	from, to int
	start    time.Time

	mu        sync.Mutex // guards the scheduler, which others change and ask
	scheduler *scheduler

	waiting  waiting
	sequence uint64
	spare    []*[]byte // packets' buffers to use again
}

// set puts an impairment in force, with random decisions and counters that
// begin anew if restart is set.
func (d *direction) set(impairment Impairment, restart bool, seed uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !restart {
		d.scheduler.change(impairment)
		return
	}
	s := newScheduler(impairment, seed)
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
	for more := false; ; {
		d.rest(more)
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

// rest sleeps until there may be something to do: not at all if there is more
// to read.
func (d *direction) rest(more bool) {
	if len(d.waiting) > 0 {
		// What arrives meanwhile is read at the end of the grain.
		if !more {
			ts := unix.NsecToTimespec(int64(grain))
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
		}
		return
	}
	fds := []unix.PollFd{{Fd: int32(d.from), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, -1); err == nil && fds[0].Revents&unix.POLLIN == 0 {
		// The device's namespace has gone, and nothing will ever come.
		time.Sleep(time.Second)
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

// buffer returns one that has been used before, if there is one: once a
// direction has seen its fullest queue, it allocates nothing.
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
