package tunnel

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// windowSize is how many packets may be inside wireguard-go, each way, when
	// it takes more. Its batches have up to 128, and there is one in each of
	// its steps. On a cable and two cores, one stream from home, where nothing
	// else bounds it: none 2,900 Mbit/s, 1,024 3,350, 512 3,460, 256 3,250.
	windowSize = 512

	// windowPatience is how long a full window may go without a sign of life
	// before one more batch goes in: what is in it may have been dropped, or wait
	// for a peer that is away, and when that batch leaves it is known. It may also
	// be a busy machine that takes so long to come to a goroutine.
	windowPatience = 5 * time.Millisecond

	// marksMax bounds what is remembered of batches that never leave.
	marksMax = 4096

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
// leaves, all before it are gone one way or the other. What it drops at once, such as a
// stranger's, has its buffer where the next packet is to go.
type window struct {
	size int

	mu sync.Mutex

	// inside is how many packets there are, by the marks.
	inside int

	// marks are the packets to recognize, from the oldest on.
	marks []mark

	// entered counts packets, and recognized the marks that have left.
	entered, recognized uint64

	// moved has a value when inside has shrunk since somebody waited.
	moved chan struct{}

	// sending counts those who are handing on what has left.
	sending atomic.Int32
}

// mark is the last packet of a batch.
type mark struct {
	// buffer is only compared: what it points to may be another packet's by now.
	buffer uintptr
	count  int // of the batch
}

func newWindow(size int) *window {
	return &window{size: size, moved: make(chan struct{}, 1)}
}

// wait waits for room.
func (w *window) wait() {
	var timer *time.Timer
	for {
		w.mu.Lock()
		if w.inside < w.size {
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
			return
		}
	}
}

// empty waits until nothing is inside, no longer than patience.
func (w *window) empty(patience time.Duration) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		inside := w.inside > 0
		w.mu.Unlock()
		if !inside && w.sending.Load() == 0 {
			return
		}
	}
}

// enter counts a batch that wireguard-go takes, of which buffer is the last.
func (w *window) enter(count int, buffer uintptr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entered += uint64(count)
	w.inside += count
	if len(w.marks) == marksMax {
		w.inside -= w.marks[0].count
		w.marks = slices.Delete(w.marks, 0, 1)
	}
	w.marks = append(w.marks, mark{buffer, count})
}

// correct says that of a batch that has entered, with this last buffer, so many have been
// dropped, and which is the last of the others, if there are any.
func (w *window) correct(buffer uintptr, dropped int, last uintptr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// The latest: an older one may have had the same buffer, and never left.
	i := len(w.marks) - 1
	for i >= 0 && w.marks[i].buffer != buffer {
		i--
	}
	if i < 0 {
		return
	}
	m := &w.marks[i]
	w.inside -= dropped
	m.count -= dropped
	m.buffer = last
	if m.count == 0 {
		w.marks = slices.Delete(w.marks, i, i+1)
	}
}

// leave looks at packets that wireguard-go hands on.
func (w *window) leave(bufs [][]byte) {
	if len(bufs) == 0 {
		return
	}
	buffer := bufferOf(bufs[len(bufs)-1])
	w.mu.Lock()
	defer w.mu.Unlock()
	gone := 0
	for i, mark := range w.marks {
		if mark.buffer != buffer {
			gone += mark.count
			continue
		}
		w.inside -= gone + mark.count
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

// intake is one of wireguard-go's readers at a window. It has a buffer for each packet that
// it may read at once, and another one in the place of each that it has kept.
type intake struct {
	window *window

	// given are the packets that count of those it has read last.
	given []givenPacket
}

type givenPacket struct {
	place  int
	buffer uintptr
}

// wait waits for room, before the reader reads into bufs.
func (i *intake) wait(bufs [][]byte) {
	dropped, last := 0, uintptr(0)
	for _, p := range i.given {
		if p.place < len(bufs) && bufferOf(bufs[p.place]) == p.buffer {
			dropped++
		} else {
			last = p.buffer
		}
	}
	if dropped > 0 {
		i.window.correct(i.given[len(i.given)-1].buffer, dropped, last)
	}
	i.window.wait()
}

// enter counts those of the packets that the reader has got which is true for.
func (i *intake) enter(bufs [][]byte, counts func(packet []byte) bool) {
	i.given = i.given[:0]
	for place, buf := range bufs {
		if counts(buf) {
			i.given = append(i.given, givenPacket{place, bufferOf(buf)})
		}
	}
	if count := len(i.given); count > 0 {
		i.window.enter(count, i.given[count-1].buffer)
	}
}

func everyPacket([]byte) bool { return true }

// isTransport tells packets with data from handshakes, which wireguard-go answers itself.
func isTransport(packet []byte) bool {
	return len(packet) > 0 && packet[0] == device.MessageTransportType
}

// windowDevice is the inner end of both windows.
type windowDevice struct {
	tun.Device
	out    intake
	in     *window
	stalls *stalls
}

// Read implements tun.Device.
func (d *windowDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.out.wait(bufs)
	n, err := d.Device.Read(bufs, sizes, offset)
	d.stalls.enter(bufs, sizes, n, offset)
	d.out.enter(bufs[:n], everyPacket)
	if err != nil {
		// With this error wireguard-go ends, and what it has not sent is lost:
		// the last of it are the resets of a stack that closes.
		d.out.window.empty(flushTimeout)
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
		in := intake{window: b.in}
		receives[i] = func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
			in.wait(packets)
			n, err := receive(packets, sizes, endpoints)
			if n > 0 {
				b.notice()
			}
			in.enter(packets[:n], isTransport)
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
