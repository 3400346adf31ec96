package tunnel

import (
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// windowSize is how many packets may be inside wireguard-go, each way, when
	// it takes more. Its batches have up to 128, and there is one in each of
	// its steps. On a cable and two cores, one stream from home, where nothing
	// else bounds it: none 2,900 Mbit/s, 1,024 3,350, 512 3,460, 256 3,250.
	windowSize = 512

	// windowPatience is how long a full window may go without a sign of life:
	// what is in it has been dropped then. It takes a busy machine that long to
	// come to a goroutine.
	windowPatience = 2 * time.Millisecond

	// flushTimeout is how long the packets of a tunnel that goes down have to
	// leave.
	flushTimeout = 250 * time.Millisecond
)

// window bounds the packets that are inside wireguard-go one way, between where
// it takes them and where it hands them on.
//
// Its own queues have 1,024 places of 128 packets each, and each packet has a
// buffer of 64 KiB: a CPU that is slower than what comes in filled 1.6 GiB. What
// waits here instead waits in the queues of kernels and of TCP, which are
// smaller, count, and tell the senders.
//
// wireguard-go does not say what it drops. So packets are not counted out but
// recognized by their buffers: it keeps them in order and in place, and when one
// leaves, all before it are gone one way or the other.
type window struct {
	size uint64

	mu sync.Mutex

	// entered counts packets. left is what it was when the last packet that has
	// left was entered.
	entered, left uint64

	// marks are the packets to recognize, from the oldest on.
	marks []mark

	// recognized counts the marks that have left.
	recognized uint64

	// moved has a value when left has grown since somebody waited.
	moved chan struct{}

	// sending counts those who are handing on what has left.
	sending atomic.Int32
}

// mark is the last packet of a batch.
type mark struct {
	// buffer is only compared: what it points to may be another packet's by now.
	buffer  uintptr
	entered uint64
}

func newWindow(size int) *window {
	return &window{size: uint64(size), moved: make(chan struct{}, 1)}
}

// wait waits for room.
func (w *window) wait() {
	var timer *time.Timer
	for {
		w.mu.Lock()
		if w.entered-w.left < w.size {
			w.mu.Unlock()
			if timer != nil {
				timer.Stop()
			}
			return
		}
		w.mu.Unlock()
		if timer == nil {
			timer = time.NewTimer(windowPatience)
		} else {
			timer.Reset(windowPatience)
		}
		select {
		case <-w.moved:
		case <-timer.C:
			w.mu.Lock()
			w.left, w.marks = w.entered, w.marks[:0]
			w.mu.Unlock()
			return
		}
	}
}

// empty waits until nothing is inside, no longer than patience.
func (w *window) empty(patience time.Duration) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		inside := w.entered != w.left
		w.mu.Unlock()
		if !inside && w.sending.Load() == 0 {
			return
		}
	}
}

// enter counts packets that wireguard-go takes.
func (w *window) enter(bufs [][]byte) {
	if len(bufs) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entered += uint64(len(bufs))
	w.marks = append(w.marks, mark{bufferOf(bufs[len(bufs)-1]), w.entered})
}

// leave looks at packets that wireguard-go hands on.
func (w *window) leave(bufs [][]byte) {
	if len(bufs) == 0 {
		return
	}
	buffer := bufferOf(bufs[len(bufs)-1])
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, mark := range w.marks {
		if mark.buffer != buffer {
			continue
		}
		w.left = mark.entered
		w.marks = w.marks[i+1:]
		w.recognized++
		select {
		case w.moved <- struct{}{}:
		default:
		}
		return
	}
}

// bufferOf tells buffers apart.
func bufferOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// windowDevice is the inner end of both windows.
type windowDevice struct {
	tun.Device
	out, in *window
	stalls  *stalls
}

// Read implements tun.Device.
func (d *windowDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.out.wait()
	n, err := d.Device.Read(bufs, sizes, offset)
	d.stalls.enter(bufs, sizes, n, offset)
	d.out.enter(bufs[:n])
	if err != nil {
		// With this error wireguard-go ends, and what it has not sent is lost:
		// the last of it are the resets of a stack that closes.
		d.out.empty(flushTimeout)
	}
	return n, err
}

// Write implements tun.Device.
func (d *windowDevice) Write(bufs [][]byte, offset int) (int, error) {
	d.in.leave(bufs)
	return d.Device.Write(bufs, offset)
}

// windowBind is the outer end of both windows.
type windowBind struct {
	conn.Bind
	out, in *window
	stalls  *stalls

	// noticed, if not nil, is called a moment after the first packet in a
	// second, when it has been decrypted.
	noticed func()
	last    atomic.Int64 // when something came, in Unix nanoseconds
}

// noticeAfter is how long it may take until a packet is decrypted.
const noticeAfter = 20 * time.Millisecond

func (b *windowBind) notice() {
	now := time.Now().UnixNano()
	if last := b.last.Swap(now); b.noticed != nil && time.Duration(now-last) > time.Second {
		time.AfterFunc(noticeAfter, b.noticed)
	}
}

// Open implements conn.Bind.
func (b *windowBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receives, actual, err := b.Bind.Open(port)
	for i, receive := range receives {
		receives[i] = func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
			b.in.wait()
			n, err := receive(packets, sizes, endpoints)
			if n > 0 {
				b.notice()
			}
			b.in.enter(packets[:n])
			return n, err
		}
	}
	return receives, actual, err
}

// Send implements conn.Bind.
func (b *windowBind) Send(bufs [][]byte, endpoint conn.Endpoint) error {
	b.out.sending.Add(1)
	defer b.out.sending.Add(-1)
	b.out.leave(bufs)
	b.stalls.leave(bufs)
	return b.Bind.Send(bufs, endpoint)
}
