package kernelns

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/vnet"
)

const (
	// batchSize is how many packets one Read or Write of the device carries.
	// It is wireguard-go's ideal (conn.IdealBatchSize).
	batchSize = 128

	// frameSize is the largest that the kernel hands over: a superpacket with
	// its header.
	frameSize = vnet.HeaderLen + 1<<16
)

// tunFile is an open TUN.
type tunFile struct {
	file *os.File
	raw  syscall.RawConn
}

func newTUNFile(file *os.File) (*tunFile, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &tunFile{file, raw}, nil
}

// device is the TUN that wireguard-go reads and writes. Superpackets that the
// kernel sends are cut right into wireguard-go's buffers; segments that arrive
// are joined before the kernel sees them.
//
// The TUN below it is another one after the namespace had to be made anew.
type device struct {
	name   string
	close  func() error
	mtu    atomic.Int32
	events *netstack.Events

	tun atomic.Pointer[tunFile] // nil when closed

	reader reader

	batches sync.Pool // of *writer

	// malformed counts frames of the kernel's that could not be cut.
	malformed atomic.Uint64
	// refused counts frames that the kernel did not take.
	refused atomic.Uint64
}

func newDevice(name string, mtu int, close func() error) *device {
	d := &device{name: name, close: close, events: netstack.NewEvents()}
	d.mtu.Store(int32(mtu))
	d.reader.device = d
	d.reader.frame = make([]byte, frameSize)
	d.reader.step = d.reader.fill
	d.batches.New = func() any {
		w := &writer{device: d}
		w.step = w.flush
		w.each = w.writeFrame
		return w
	}
	return d
}

// reader is the state of Read. Its methods are bound once, so that nothing is
// allocated for a packet.
type reader struct {
	mu      sync.Mutex // keeps a second reader out; wireguard-go has one
	device  *device
	frame   []byte
	segment vnet.Segmenter
	step    func(fd uintptr) bool

	bufs   [][]byte
	sizes  []int
	offset int
	n      int
	err    error
}

// Read waits for packets of the stack and fills as many buffers as there are
// packets, from offset on.
func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	r := &d.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bufs, r.sizes, r.offset, r.n, r.err = bufs, sizes, offset, 0, nil
	if len(bufs) == 0 {
		return 0, nil
	}
	for {
		tun := d.tun.Load()
		if tun == nil {
			return 0, os.ErrClosed
		}
		err := tun.raw.Read(r.step)
		if r.n > 0 {
			return r.n, nil
		}
		if (err != nil || r.err != nil) && d.tun.Load() == tun {
			return 0, os.ErrClosed
		}
	}
}

// fill fills buffers until there is nothing more to read, and says whether it
// is to be called again when there is.
func (r *reader) fill(fd uintptr) (done bool) {
	for r.n < len(r.bufs) {
		if !r.segment.Active() {
			size, err := unix.Read(int(fd), r.frame)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return r.n > 0
			case err != nil:
				r.err = err
				return true
			}
			if r.segment.Start(r.frame[:size], int(r.device.mtu.Load())) != nil {
				r.device.malformed.Add(1)
				continue
			}
		}
		if size := r.segment.Next(r.bufs[r.n][r.offset:]); size > 0 {
			r.sizes[r.n] = size
			r.n++
		}
	}
	return true
}

// writer is the state of one Write.
type writer struct {
	device *device
	joined vnet.Coalescer
	step   func(fd uintptr) bool
	each   func(frame [][]byte) error
	fd     uintptr
	iovecs []unix.Iovec
}

// Write hands packets to the stack and returns how many there were. It keeps
// none of the buffers.
func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	tun := d.tun.Load()
	if tun == nil {
		return 0, os.ErrClosed
	}
	w := d.batches.Get().(*writer)
	for _, buf := range bufs {
		if offset < len(buf) {
			w.joined.Add(buf[offset:])
		}
	}
	err := tun.raw.Write(w.step)
	w.joined.Reset()
	d.batches.Put(w)
	if err != nil && d.tun.Load() == nil {
		return 0, os.ErrClosed
	}
	return len(bufs), nil
}

// flush writes what has been joined. It never waits: the kernel takes a packet
// or drops it.
func (w *writer) flush(fd uintptr) (done bool) {
	w.fd = fd
	_ = w.joined.Frames(w.each)
	return true
}

func (w *writer) writeFrame(frame [][]byte) error {
	w.iovecs = w.iovecs[:0]
	for _, piece := range frame {
		if len(piece) == 0 {
			continue
		}
		iovec := unix.Iovec{Base: unsafe.SliceData(piece)}
		iovec.SetLen(len(piece))
		w.iovecs = append(w.iovecs, iovec)
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_WRITEV, w.fd, uintptr(unsafe.Pointer(unsafe.SliceData(w.iovecs))), uintptr(len(w.iovecs)))
		if errno == unix.EINTR {
			continue
		}
		clear(w.iovecs)
		if errno != 0 {
			w.device.refused.Add(1)
		}
		return nil
	}
}

// use makes tun the one that is read and written, nil none, and closes the
// former.
func (d *device) use(tun *tunFile) {
	if former := d.tun.Swap(tun); former != nil {
		_ = former.file.Close()
	}
}

// drained says whether the reader has taken all that the kernel has sent.
func (d *device) drained() bool {
	tun := d.tun.Load()
	if tun == nil {
		return true
	}
	waiting := false
	_ = tun.raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		waiting = err == nil && n == 1 && poll[0].Revents&unix.POLLIN != 0
	})
	return !waiting
}

func (d *device) setMTU(mtu int) {
	if d.mtu.Swap(int32(mtu)) != int32(mtu) {
		d.events.MTUChanged()
	}
}

// Close closes the whole stack, however often it is called.
func (d *device) Close() error { return d.close() }

// File is nil: the descriptor is not for others to read.
func (d *device) File() *os.File { return nil }

// MTU returns the size of the largest packet.
func (d *device) MTU() (int, error) { return int(d.mtu.Load()), nil }

// Name returns the configured name.
func (d *device) Name() (string, error) { return d.name, nil }

// Events returns the channel of MTU changes.
func (d *device) Events() <-chan tun.Event { return d.events.C() }

// BatchSize returns how many packets one Read or Write carries.
func (d *device) BatchSize() int { return batchSize }

var _ tun.Device = (*device)(nil)
