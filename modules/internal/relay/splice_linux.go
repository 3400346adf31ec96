package relay

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bulk is how many bytes must have come at once for the next ones to be
// spliced. A small message is cheaper to copy: a request and an answer of 100
// bytes cost 28 to 31 µs of CPU with both ends' own, and 31 to 36 when they
// were spliced, and an idle connection's keystrokes need no pipe. Between 4 and
// 32 KiB it made no difference to bulk transfers.
var bulk = 16 << 10

// move copies until src ends, which is no error, or one of them fails. Where
// both are kernel sockets it splices.
func (s *Stream) move(dst, src Conn, watch *resetWatch, count *atomic.Uint64) (readErr, writeErr error) {
	out := spliceTo(dst)
	if out == nil {
		return s.pump(dst, src, watch, count)
	}
	in, ready := spliceFrom(src)
	if in != nil && !ready {
		buf := smallBuffers.Get()
		for in != nil && !ready {
			n, err := src.Read(*buf)
			if n > 0 {
				writeErr = s.forward(dst, (*buf)[:n], watch, count)
			}
			if err != nil || writeErr != nil {
				smallBuffers.Put(buf)
				return orderly(err), writeErr
			}
			in, ready = spliceFrom(src)
		}
		smallBuffers.Put(buf)
	}
	if in == nil {
		return s.pump(dst, src, watch, count)
	}
	d := &direction{stream: s, watch: watch, count: count, src: src, dst: dst, in: in, out: out, bulk: bulk <= 0}
	d.unsent.start(out)
	return d.run()
}

// spliceFrom returns the socket that c reads from, as Spliceable says.
func spliceFrom(c Conn) (socket syscall.RawConn, ready bool) {
	if c, ok := c.(Spliceable); ok {
		return c.SpliceFrom()
	}
	return rawConn(c), true
}

// spliceTo returns the socket that c writes to, as Spliceable says.
func spliceTo(c Conn) syscall.RawConn {
	if c, ok := c.(Spliceable); ok {
		return c.SpliceTo()
	}
	return rawConn(c)
}

func rawConn(c Conn) syscall.RawConn {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// direction is one half of a Stream between two kernel sockets. It holds a
// pipe or a buffer while there are bytes in it, and neither while it waits for
// bytes. What comes in small pieces is copied, what follows a large piece is
// spliced. Either way the socket is written to as long as it takes something, so
// that its rate is known.
type direction struct {
	stream   *Stream
	watch    *resetWatch
	count    *atomic.Uint64
	src, dst Conn
	in, out  syscall.RawConn

	bulk    bool // the last piece was a large one
	refused bool // this socket cannot be spliced

	pipe   *pipe
	inPipe int
	buf    *[]byte
	inBuf  []byte // what of buf is not written yet
	unsent unsentBound
	end    bool
	err    error
}

func (d *direction) run() (readErr, writeErr error) {
	defer d.release()
	// A method value allocates: once for each direction is enough.
	fill, drain := d.fill, d.drain
	for {
		if err := d.in.Read(fill); err != nil {
			return err, nil
		}
		if d.err != nil {
			return opError("read", d.src, d.err), nil
		}
		if d.end {
			return nil, nil
		}
		d.stream.touch()
		d.bulk = max(d.inPipe, len(d.inBuf)) >= bulk
		err := d.out.Write(drain)
		d.watch.end()
		if err != nil {
			return nil, err
		}
		if d.err != nil {
			return nil, opError("write", d.dst, d.err)
		}
		if d.buf != nil {
			d.release()
		}
	}
}

// fill takes what the socket has, and returns false if it has nothing. It is
// first called without a wait.
func (d *direction) fill(fd uintptr) bool {
	if d.bulk && !d.refused && d.spliceIn(int(fd)) {
		return true
	}
	d.release()
	d.buf = largeBuffers.Get()
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), *d.buf) })
	if err == unix.EAGAIN {
		d.release()
		d.unsent.starved()
		return false
	}
	d.inBuf, d.end, d.err = (*d.buf)[:max(n, 0)], n == 0 && err == nil, os.NewSyscallError("read", err)
	return true
}

// spliceIn fills a pipe. It returns false if there was no pipe, or nothing to
// fill it with.
//
// Then fill reads, and only what read says counts: splice stops for good in
// front of an urgent byte (FTP's ABOR, telnet's Synch), says EAGAIN, or that
// this is the end if a FIN came after it, and never gets at what is between.
// Read leaves the urgent byte out and goes on.
func (d *direction) spliceIn(fd int) bool {
	if d.pipe == nil {
		if d.pipe = pipes.get(); d.pipe == nil {
			return false
		}
	}
	n, err := splice(fd, d.pipe.w, d.pipe.size)
	switch {
	case err == nil && n > 0:
		d.inPipe = n
		return true
	case err == nil, err == unix.EAGAIN:
		return false
	case err == unix.EINVAL, err == unix.EOPNOTSUPP, err == unix.ENOSYS, err == unix.EPERM:
		d.refused = true
		return false
	}
	d.err = os.NewSyscallError("splice", err)
	return true
}

// drain empties the pipe or the buffer, and returns false when the socket is
// full.
func (d *direction) drain(fd uintptr) bool {
	for d.inPipe > 0 || len(d.inBuf) > 0 {
		n, call, err := d.pour(int(fd))
		if err == unix.EAGAIN {
			d.unsent.full(fd, time.Now())
			d.watch.begin()
			return false
		}
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			d.err = os.NewSyscallError(call, err)
			return true
		}
		d.count.Add(uint64(n))
		d.stream.touch()
		d.unsent.taken += n
	}
	return true
}

// pour writes once, and says by which system call.
func (d *direction) pour(fd int) (n int, call string, err error) {
	if d.inPipe > 0 {
		// Exactly what is in the pipe: asked for more, older kernels hold the
		// last segment back.
		if n, err = splice(d.pipe.r, fd, d.inPipe); err == nil {
			d.inPipe -= n
			d.stream.spliced.Add(uint64(n))
		}
		return n, "splice", err
	}
	if n, err = ignoringEINTR(func() (int, error) { return unix.Write(fd, d.inBuf) }); err == nil {
		d.inBuf = d.inBuf[n:]
	}
	return n, "write", err
}

// release gives back what the direction holds.
func (d *direction) release() {
	if d.pipe != nil {
		if d.inPipe > 0 {
			pipes.discard(d.pipe)
		} else {
			pipes.put(d.pipe)
		}
		d.pipe, d.inPipe = nil, 0
	}
	if d.buf != nil {
		largeBuffers.Put(d.buf)
		d.buf, d.inBuf = nil, nil
	}
}

func splice(from, to, most int) (int, error) {
	return ignoringEINTR(func() (int, error) {
		n, err := unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		return int(n), err
	})
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// opError says what package net would have said.
func opError(op string, c Conn, err error) error {
	local := c.LocalAddr()
	return &net.OpError{Op: op, Net: local.Network(), Source: local, Addr: c.RemoteAddr(), Err: err}
}
