package relay

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// paths are those of sockets. (Tests of this package are not parallel, and a
// test that changes what this process relays with waits for its Streams.)
var paths = []path{
	{name: "socket", set: func(testing.TB) {}, conn: asItIs, spliced: true},
	{name: "spliced from the first byte", set: func(t testing.TB) { setBulk(t, 0) }, conn: asItIs, spliced: true},
	{name: "without pipes", set: func(t testing.TB) { setBulk(t, 0); setPipes(t, &pipePool{size: pipeSize}) }, conn: asItIs, copied: true},
	{name: "with small pipes", set: func(t testing.TB) { setBulk(t, 0); setPipes(t, &pipePool{size: pipeFloor, limit: 2}) }, conn: asItIs, spliced: true},
}

func setBulk(t testing.TB, bytes int) {
	before := bulk
	bulk = bytes
	t.Cleanup(func() { bulk = before })
}

func setPipes(t testing.TB, pool *pipePool) {
	before := pipes
	pipes = pool
	t.Cleanup(func() { pipes = before })
	t.Cleanup(func() {
		settles(t, "pipes in use", pool.lent, 0)
		pool.forget()
		if n := pool.count(); n != 0 {
			t.Errorf("%d pipes left", n)
		}
	})
}

// forget closes the idle pipes without waiting for their time.
func (p *pipePool) forget() {
	p.trim()
	p.trim()
}

// count returns how many pipes are open.
func (p *pipePool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

// lent returns how many pipes are in use.
func (p *pipePool) lent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open - len(p.idle)
}

// A connection that waits holds no pipe, however many bytes have passed.
func TestSpliceWaitsWithoutPipe(t *testing.T) {
	pool := &pipePool{size: pipeSize, limit: 8}
	setPipes(t, pool)
	client, upstream, stream, result := path{conn: asItIs}.relayed(t, 0)
	for range 3 {
		text := strings.Repeat("x", 1<<20)
		go func() { _, _ = io.WriteString(client, text) }()
		receive(t, upstream, text)
		settles(t, "pipes in use", pool.lent, 0)
	}
	if stream.spliced.Load() == 0 {
		t.Error("nothing was spliced")
	}
	settles(t, "idle pipes", pool.count, 0)
	stream.Abort(Shutdown)
	wait(t, result)
}

// stall fills a Stream whose receiver does not read, until a pipe is in use.
func stall(t *testing.T, client *net.TCPConn, inUse func() int) {
	t.Helper()
	go func() {
		block := make([]byte, 64<<10)
		for {
			if _, err := client.Write(block); err != nil {
				return
			}
		}
	}()
	settles(t, "pipes free", func() int { return 1 - inUse() }, 0)
}

// A receiver that does not read keeps its pipe. Others do not wait for it, and
// when it ends, its pipe ends with it.
func TestSpliceOthersPassStalled(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(client, upstream *net.TCPConn, stream *Stream)
		want Reason
	}{
		{"aborted", func(_, _ *net.TCPConn, s *Stream) { s.Abort(Shutdown) }, Shutdown},
		{"reset by the receiver", func(_, u *net.TCPConn, _ *Stream) { _ = u.SetLinger(0); u.Close() }, UpstreamReset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			setBulk(t, 0)
			pool := &pipePool{size: pipeSize, limit: 1}
			setPipes(t, pool)
			files := descriptors()

			client, upstream, stream, result := path{conn: asItIs}.relayed(t, 0)
			var stuck int
			stall(t, client, func() int {
				// In use, and still in use with the same bytes a moment later.
				if sent, _ := stream.Counts(); pool.lent() == 1 && int(sent) == stuck {
					return 1
				}
				sent, _ := stream.Counts()
				stuck = int(sent)
				return 0
			})
			other, otherUp, otherStream, otherResult := path{conn: asItIs}.relayed(t, 0)
			text := strings.Repeat("x", 1<<20)
			go func() { _, _ = io.WriteString(other, text) }()
			receive(t, otherUp, text)
			if n := otherStream.spliced.Load(); n != 0 {
				t.Errorf("%d bytes were spliced with somebody else's pipe", n)
			}
			otherStream.Abort(Shutdown)
			wait(t, otherResult)

			tt.end(client, upstream, stream)
			if r := wait(t, result); r.Reason != tt.want {
				t.Errorf("reason %q: %v", r.Reason, r.Err)
			}
			// The other direction may have had a pipe since.
			for _, p := range pool.idle {
				if n, err := unix.IoctlGetInt(p.r, unix.TIOCINQ); err != nil || n > 0 {
					t.Errorf("an idle pipe has %d bytes of a connection that has ended, %v", n, err)
				}
			}
			pool.forget()
			for _, c := range []*net.TCPConn{client, upstream, other, otherUp} {
				c.Close()
			}
			settles(t, "descriptors", descriptors, files)
		})
	}
}

// An urgent byte is left out, as it is by every read, and what comes before
// and after it passes. (Splice itself never gets beyond it.)
func TestSpliceUrgent(t *testing.T) {
	overPaths(t, func(t *testing.T, p path) {
		client, upstream, _, result := p.relayed(t, 0)
		urgent := func() {
			raw, err := client.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Write(func(fd uintptr) bool {
				err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
				return err != unix.EAGAIN
			}); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		large := strings.Repeat("x", 256<<10)
		for range 20 {
			send(t, client, "before")
			urgent()
			send(t, client, "after")
			receive(t, upstream, "beforeafter")
			go func() { _, _ = io.WriteString(client, large) }()
			receive(t, upstream, large)
			urgent()
		}
		send(t, client, "end")
		client.CloseWrite()
		receive(t, upstream, "end")
		if err := receiveEnd(t, upstream); err != io.EOF {
			t.Errorf("the upstream sees %v", err)
		}
		upstream.Close()
		wait(t, result)
	})
}

// A Multipath TCP socket, which any listener of Go's accepts, may not know how
// to splice.
func TestSpliceMultipath(t *testing.T) {
	config := net.ListenConfig{}
	config.SetMultipathTCP(true)
	ln, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialer := net.Dialer{}
	dialer.SetMultipathTCP(true)
	client, err := dialer.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	down, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if multipath, err := down.(*net.TCPConn).MultipathTCP(); err != nil || !multipath {
		t.Skip("this system has no Multipath TCP")
	}
	setBulk(t, 0)
	up, upstream := pair(t)
	result := make(chan Result, 1)
	go func() { result <- NewStream(down.(*net.TCPConn), up, 0).Run() }()
	for _, c := range []net.Conn{client, upstream} {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	text := strings.Repeat("there and back", 100_000)
	for _, way := range []struct{ from, to net.Conn }{{client, upstream}, {upstream, client}} {
		go func() { _, _ = io.WriteString(way.from, text) }()
		receive(t, way.to, text)
	}
	client.Close()
	upstream.Close()
	wait(t, result)
}

// What the kernel does not splice is read, and not tried again.
func TestSpliceRefused(t *testing.T) {
	pool := &pipePool{size: pipeSize, limit: 1}
	setPipes(t, pool)
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	d := &direction{bulk: true}
	if d.fill(uintptr(fd)) {
		t.Errorf("does not wait for what it can read: %v", d.err)
	}
	if !d.refused || pool.lent() != 0 || d.buf != nil {
		t.Errorf("refused %v, %d pipes in use, a buffer of %d bytes", d.refused, pool.lent(), len(d.inBuf))
	}
}

// prefetched is a Spliceable that has read something already.
type prefetched struct {
	*net.TCPConn
	first  []byte
	splits bool         // says nothing of sockets
	asked  atomic.Int32 // how often it was asked
}

func (p *prefetched) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.TCPConn.Read(b)
}

func (p *prefetched) SpliceFrom() (syscall.RawConn, bool) {
	p.asked.Add(1)
	if p.splits {
		return nil, false
	}
	return rawConn(p.TCPConn), len(p.first) == 0
}

func (p *prefetched) SpliceTo() syscall.RawConn {
	if p.splits {
		return nil
	}
	return rawConn(p.TCPConn)
}

// What was prefetched comes first.
func TestSplicePrefetched(t *testing.T) {
	for _, tt := range []struct {
		name   string
		first  int
		splits bool
	}{
		{"nothing", 0, false},
		{"less than a buffer", 100, false},
		{"several buffers", 3*smallBuffer + 1, false},
		{"no socket", 3*smallBuffer + 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			setBulk(t, 0)
			data := make([]byte, 1<<20)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(data)

			client, socket := pair(t)
			up, upstream := pair(t)
			down := &prefetched{TCPConn: socket, first: bytes.Clone(data[:tt.first]), splits: tt.splits}
			result := make(chan Result, 1)
			go func() { result <- NewStream(down, up, 0).Run() }()
			go func() {
				_, _ = client.Write(data[tt.first:])
				client.CloseWrite()
			}()
			got, err := io.ReadAll(upstream)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("received %d of %d bytes, or others: %v", len(got), len(data), err)
			}
			upstream.Close()
			r := wait(t, result)
			if r.Sent != uint64(len(data)) {
				t.Errorf("counted %d of %d bytes", r.Sent, len(data))
			}
			if most := uint64(len(data) - tt.first); tt.splits && r.Spliced != 0 || !tt.splits && (r.Spliced == 0 || r.Spliced > most) {
				t.Errorf("spliced %d bytes", r.Spliced)
			}
			if down.asked.Load() == 0 {
				t.Error("nobody asked")
			}
		})
	}
}

func TestPipePool(t *testing.T) {
	files, goroutines := descriptors(), runtime.NumGoroutine()
	pool := &pipePool{size: pipeSize, limit: 3}
	var lent []*pipe
	for range pool.limit {
		p := pool.get()
		if p == nil {
			t.Fatalf("no pipe after %d of %d", len(lent), pool.limit)
		}
		if p.size < pipeFloor {
			t.Errorf("a pipe of %d bytes", p.size)
		}
		lent = append(lent, p)
	}
	if pool.get() != nil {
		t.Error("lends more pipes than there may be")
	}

	// What comes back is lent again; what is discarded makes room.
	pool.put(lent[0])
	if again := pool.get(); again != lent[0] {
		t.Error("does not lend an idle pipe")
	}
	pool.discard(lent[1])
	fresh := pool.get()
	if fresh == nil {
		t.Fatal("a discarded pipe makes no room")
	}
	if n, err := unix.Write(fresh.w, []byte("x")); n != 1 || err != nil {
		t.Errorf("writing to a fresh pipe: %v", err)
	}
	pool.discard(fresh)

	pool.put(lent[0])
	pool.put(lent[2])
	settles(t, "pipes", pool.count, 0)
	settles(t, "descriptors", descriptors, files)
	settles(t, "goroutines", runtime.NumGoroutine, goroutines)
}

// Where the kernel gives no pipe, or only a tiny one, there is none, and it is
// not asked each time.
func TestPipePoolRefused(t *testing.T) {
	files := descriptors()
	pool := &pipePool{size: 4 << 10, limit: 3} // a quota that is used up gives as little
	if p := pool.get(); p != nil {
		t.Errorf("lends a pipe of %d bytes", p.size)
	}
	if pool.scarce.IsZero() || pool.get() != nil || pool.count() != 0 {
		t.Error("goes on asking")
	}
	if now := descriptors(); now != files {
		t.Errorf("%d descriptors, %d before", now, files)
	}
}
