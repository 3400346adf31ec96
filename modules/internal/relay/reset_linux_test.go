package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// One side is reset while all buffers on the way to the other are full: nothing
// has to be read or written for the Stream to end.
func TestStreamResetWhileFull(t *testing.T) { overPaths(t, testStreamResetWhileFull) }

func testStreamResetWhileFull(t *testing.T, p path) {
	if p.name == "opaque" {
		t.Skip("only sockets of a kernel are watched")
	}
	for _, tt := range []struct {
		name string
		ends func(client, upstream *net.TCPConn) (sender, receiver *net.TCPConn)
		want Reason
	}{
		{"by the client", func(c, u *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return c, u }, ClientReset},
		{"by the upstream", func(c, u *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return u, c }, UpstreamReset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, upstream, _, result := p.relayed(t, 0)
			sender, receiver := tt.ends(client, upstream)
			fill(sender)
			_ = sender.SetLinger(0)
			sender.Close()
			if got := wait(t, result); got.Reason != tt.want {
				t.Errorf("it ended with %q, want %q", got.Reason, tt.want)
			}
			if n, err := io.Copy(io.Discard, receiver); err == nil {
				t.Errorf("after %d bytes the receiver saw an orderly end", n)
			}
		})
	}
}

// heldFull is a socket whose write, once it has found the socket full, stays
// where it is until the socket is being closed, and then tries again.
type heldFull struct {
	*net.TCPConn
	closing chan struct{} // closed when Close is called
	full    chan struct{} // closed when a write has found the socket full
	once    sync.Once
}

func (h *heldFull) Close() error {
	h.once.Do(func() { close(h.closing) })
	return h.TCPConn.Close()
}

func (h *heldFull) SpliceFrom() (syscall.RawConn, bool) { return rawConn(h.TCPConn), true }

func (h *heldFull) SpliceTo() syscall.RawConn { return &heldWrites{rawConn(h.TCPConn), h} }

type heldWrites struct {
	syscall.RawConn
	held *heldFull
}

func (w *heldWrites) Write(write func(fd uintptr) bool) error {
	return w.RawConn.Write(func(fd uintptr) bool {
		if write(fd) {
			return true
		}
		close(w.held.full)
		<-w.held.closing
		return write(fd)
	})
}

// A side is found to have been reset just when a write to the other finds it
// full: closing that other side waits for the write, which must not wait for
// whoever is closing it.
func TestStreamResetWithinWrite(t *testing.T) {
	client, down := pair(t)
	up, _ := pair(t)
	held := &heldFull{TCPConn: up, closing: make(chan struct{}), full: make(chan struct{})}
	result := make(chan Result, 1)
	go func() { result <- NewStream(down, held, 0).Run() }()
	go func() { _, _ = io.Copy(client, zeros{}) }()
	<-held.full
	_ = client.SetLinger(0)
	client.Close()
	if got := wait(t, result); got.Reason != ClientReset {
		t.Errorf("it ended with %q, want %q", got.Reason, ClientReset)
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// closedByKernel waits until the kernel has given up a connection.
func closedByKernel(t *testing.T, c *net.TCPConn) {
	t.Helper()
	const tcpClose = 7 // TCP_CLOSE
	settles(t, "connections open", func() (open int) {
		onSocket(t, c, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil && info.State != tcpClose {
				open = 1
			}
			return err
		})
		return open
	}, 0)
}

func onSocket(t *testing.T, c *net.TCPConn, call func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = call(int(fd)) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

// deafen makes a socket drop all that arrives, as if its host were down.
func deafen(t *testing.T, c *net.TCPConn) {
	t.Helper()
	onSocket(t, c, func(fd int) error {
		drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	})
}

// probe makes a socket notice within two seconds that the other end is gone.
func probe(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 1}); err != nil {
		t.Fatal(err)
	}
}

// A side fails that is reset or no longer answers before it has sent FIN.
// After that it has only closed.
func TestResetWatch(t *testing.T) {
	const said = "all it said"
	finish := func(t *testing.T, sender, src *net.TCPConn) {
		if err := sender.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		settles(t, "bytes on their way, FIN included", func() int { return waiting(t, sender, unix.TIOCOUTQ) }, 0)
	}
	reset := func(t *testing.T, sender, src *net.TCPConn) {
		_ = sender.SetLinger(0)
		sender.Close()
		closedByKernel(t, src)
	}
	vanish := func(t *testing.T, sender, src *net.TCPConn) {
		deafen(t, sender)
		probe(t, src)
		closedByKernel(t, src)
	}
	both := func(t *testing.T, sender, src *net.TCPConn) {
		finish(t, sender, src)
		reset(t, sender, src)
	}
	type event = func(t *testing.T, sender, src *net.TCPConn)
	for _, tt := range []struct {
		name   string
		events []event
		want   Reason
	}{
		{"reset", []event{reset}, ClientReset},
		{"timeout", []event{vanish}, ClientTimedOut},
		{"FIN", []event{finish}, ""},
		{"FIN, then reset", []event{finish, reset}, ""},
		{"FIN, then timeout", []event{finish, vanish}, ""},
		{"FIN and reset at once", []event{both}, ""},
	} {
		for _, half := range []struct {
			name string

			// before and after are what the half does around each event, and
			// last after all.
			before, after, last func(*resetWatch)
		}{
			{"one wait", (*resetWatch).begin, (*resetWatch).check, (*resetWatch).check},
			{"several waits", func(*resetWatch) {}, func(w *resetWatch) { w.begin(); w.check(); w.end() }, (*resetWatch).end},
			{"short waits", func(*resetWatch) {}, func(w *resetWatch) { w.begin(); w.end() }, func(w *resetWatch) { w.begin(); w.check() }},
		} {
			t.Run(tt.name+"/"+half.name, func(t *testing.T) {
				t.Parallel()
				sender, src := pair(t)
				dst, _ := pair(t)
				s := NewStream(src, dst, 0)
				w := s.watch(src, clientSide)
				send(t, sender, said)
				for _, event := range tt.events {
					half.before(w)
					event(t, sender, src)
					half.after(w)
				}
				half.last(w)
				w.end()

				if noted := w.failed(); (noted != nil) != (tt.want != "") {
					t.Errorf("the half is told %v", noted)
				}
				if tt.want == "" {
					receive(t, src, said)
					if err := receiveEnd(t, src); err != io.EOF {
						t.Errorf("after what it said comes %v", err)
					}
					return
				}
				settles(t, "failures to come", func() int {
					s.mu.Lock()
					defer s.mu.Unlock()
					if s.reason == "" {
						return 1
					}
					return 0
				}, 0)
				if s.reason != tt.want {
					t.Errorf("it failed with %q, want %q: %v", s.reason, tt.want, s.err)
				}
			})
		}
	}
}

// A sender has closed, and is gone from its system, while the relay still waits
// to pass on what it sent: nothing of that is lost.
func TestStreamClosedLongAgo(t *testing.T) {
	// Little fits into the way to the receiver, much into the sender's side of the
	// relay.
	setPipes(t, &pipePool{size: pipeSize})
	for _, tt := range []struct {
		name   string
		closed bool // the receiver has nothing to say and says so first
	}{
		{"before the receiver", false},
		{"after the receiver's half", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, down := pair(t)
			up, upstream := pair(t)
			for _, err := range []error{up.SetWriteBuffer(4 << 10), down.SetReadBuffer(1 << 20)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			onSocket(t, client, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_LINGER2, 1) })
			probe(t, down)
			result := make(chan Result, 1)
			go func() { result <- NewStream(down, up, 0).Run() }()

			const sent = 256 << 10
			if _, err := client.Write(make([]byte, sent)); err != nil {
				t.Fatal(err)
			}
			settles(t, "bytes on their way", func() int { return waiting(t, client, unix.TIOCOUTQ) }, 0)
			client.Close()
			closedByKernel(t, down)
			if waiting(t, down, unix.TIOCINQ) == 0 {
				t.Fatal("nothing is left to relay")
			}
			if tt.closed {
				if err := upstream.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case r := <-result:
				t.Fatalf("it ended with %q after %d of %d bytes: %v", r.Reason, r.Sent, sent, r.Err)
			case <-time.After(2 * resetCheck):
			}

			if n, err := io.Copy(io.Discard, upstream); err != nil || int(n) != sent {
				t.Errorf("the receiver got %d of %d bytes, %v", n, sent, err)
			}
			upstream.Close()
			if r := wait(t, result); !r.Reason.Orderly() || r.Err != nil || int(r.Sent) != sent {
				t.Errorf("it ended with %q after %d of %d bytes: %v", r.Reason, r.Sent, sent, r.Err)
			}
		})
	}
}

// waiting returns how many bytes are in a socket, as this ioctl counts them.
func waiting(t *testing.T, c *net.TCPConn, ioctl uint) (bytes int) {
	t.Helper()
	onSocket(t, c, func(fd int) (err error) {
		bytes, err = unix.IoctlGetInt(fd, ioctl)
		return err
	})
	return bytes
}

// split is a socket whose error is told to whoever writes, and only then to
// whoever reads. The writer is kept from passing it on.
type split struct {
	*net.TCPConn
	full    chan struct{} // closed when a write has found the socket full
	failing chan struct{} // closed when the next to return has an error to tell
	told    chan struct{} // closed when a write has returned since
	release chan struct{} // closed when the writer may go on
}

func (s *split) SpliceFrom() (syscall.RawConn, bool) { return &splitReads{rawConn(s.TCPConn), s}, true }

func (s *split) SpliceTo() syscall.RawConn { return &splitWrites{rawConn(s.TCPConn), s} }

type splitReads struct {
	syscall.RawConn
	split *split
}

func (r *splitReads) Read(read func(fd uintptr) bool) error {
	return r.RawConn.Read(func(fd uintptr) bool {
		select {
		case <-r.split.failing:
			<-r.split.told
		default:
		}
		return read(fd)
	})
}

type splitWrites struct {
	syscall.RawConn
	split *split
}

func (w *splitWrites) Write(write func(fd uintptr) bool) error {
	var once sync.Once
	err := w.RawConn.Write(func(fd uintptr) bool {
		done := write(fd)
		if !done {
			once.Do(func() { close(w.split.full) })
		}
		return done
	})
	select {
	case <-w.split.failing:
		close(w.split.told)
		<-w.split.release
	default:
	}
	return err
}

// What cuts a connection is told to one of the two halves that wait for it. The
// other one sees an end of file, and must not pass that on as an orderly end.
func TestStreamCutToldToWriter(t *testing.T) {
	client, down := pair(t)
	up, upstream := pair(t)
	s := &split{down, make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})}
	result := make(chan Result, 1)
	go func() { result <- NewStream(s, up, 0).Run() }()
	full := func() bool {
		fill(upstream)
		select {
		case <-s.full:
			return true
		default:
			return false
		}
	}
	// On a busy machine fill may take a way for full that is only slow.
	for tries := 1; !full(); tries++ {
		if tries == 20 {
			t.Fatal("no write has found the socket full")
		}
	}
	close(s.failing)
	_ = client.SetLinger(0)
	client.Close()
	if err := receiveEnd(t, upstream); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the upstream sees %v, want a reset", err)
	}
	close(s.release)
	if r := wait(t, result); r.Reason != ClientReset {
		t.Errorf("it ended with %q, want %q: %v", r.Reason, ClientReset, r.Err)
	}
}

// The reason is the one that the half has which was told, whoever is first.
func TestStreamCutReason(t *testing.T) {
	for _, tt := range []struct {
		name string
		cut  func(t *testing.T, client, down *net.TCPConn)
		want Reason
	}{
		{"a reset", func(_ *testing.T, client, _ *net.TCPConn) { _ = client.SetLinger(0); client.Close() }, ClientReset},
		{"a timeout", func(t *testing.T, client, down *net.TCPConn) {
			deafen(t, client)
			onSocket(t, down, func(fd int) error {
				return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 500)
			})
		}, ClientTimedOut},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for range 4 {
				client, down := pair(t)
				up, upstream := pair(t)
				result := make(chan Result, 1)
				go func() { result <- NewStream(down, up, 0).Run() }()
				fill(upstream)
				tt.cut(t, client, down)
				if err := receiveEnd(t, upstream); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the upstream sees %v, want a reset", err)
				}
				if r := wait(t, result); r.Reason != tt.want {
					t.Errorf("it ended with %q, want %q: %v", r.Reason, tt.want, r.Err)
				}
			}
		})
	}
}

// fill writes until no more fits into the way to a receiver that does not read.
func fill(sender *net.TCPConn) {
	for block := make([]byte, 64<<10); ; {
		_ = sender.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := sender.Write(block); err != nil {
			return
		}
	}
}
