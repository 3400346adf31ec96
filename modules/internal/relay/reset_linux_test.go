package relay

import (
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
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
			for {
				_ = sender.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err := sender.Write(make([]byte, 64<<10)); err != nil {
					break
				}
			}
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
