package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// pair returns the two ends of a TCP connection over loopback.
func pair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	far, err = ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// relayed starts a Stream and returns its outer ends and its result.
func (p path) relayed(t testing.TB, idle time.Duration) (client, upstream *net.TCPConn, stream *Stream, result chan Result) {
	t.Helper()
	client, down := pair(t)
	up, upstream := pair(t)
	for _, c := range []*net.TCPConn{client, upstream} {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	stream = NewStream(p.conn(down), p.conn(up), idle)
	result = make(chan Result, 1)
	go func() { result <- stream.Run() }()
	return client, upstream, stream, result
}

func wait(t testing.TB, result chan Result) Result {
	t.Helper()
	select {
	case r := <-result:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("the relay does not end")
		return Result{}
	}
}

func send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, c net.Conn, want string) {
	t.Helper()
	if err := received(c, want); err != nil {
		t.Fatal(err)
	}
}

func received(c net.Conn, want string) error {
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		return fmt.Errorf("received %q, %v; want %q", got, err, want)
	}
	return nil
}

// receiveEnd reads to the end and returns the error that is there.
func receiveEnd(t testing.TB, c net.Conn) error {
	t.Helper()
	_, err := c.Read(make([]byte, 1))
	if err == nil {
		t.Fatal("received a byte instead of the end")
	}
	return err
}

func TestStreamHalfClose(t *testing.T) { overPaths(t, testStreamHalfClose) }

func testStreamHalfClose(t *testing.T, p path) {
	for _, tt := range []struct {
		name   string
		first  func(client, upstream *net.TCPConn) (*net.TCPConn, *net.TCPConn)
		reason Reason
	}{
		{"client first", func(c, u *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return c, u }, ClientClosed},
		{"upstream first", func(c, u *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return u, c }, UpstreamClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, upstream, _, result := p.relayed(t, 0)
			first, second := tt.first(client, upstream)

			send(t, first, "the last words")
			if err := first.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			receive(t, second, "the last words")
			if err := receiveEnd(t, second); err != io.EOF {
				t.Fatalf("the other end sees %v, want EOF", err)
			}

			// The other direction stays open, for as long as it likes.
			select {
			case r := <-result:
				t.Fatalf("ended by half a close: %+v", r)
			case <-time.After(50 * time.Millisecond):
			}
			send(t, second, "a long answer")
			receive(t, first, "a long answer")
			second.Close()
			if err := receiveEnd(t, first); err != io.EOF {
				t.Fatalf("the first end sees %v, want EOF", err)
			}

			r := wait(t, result)
			p.took(t, r)
			if r.Reason != tt.reason || r.Err != nil || !r.Reason.Orderly() {
				t.Errorf("reason %q, error %v; want %q and none", r.Reason, r.Err, tt.reason)
			}
			if r.Sent+r.Received != uint64(len("the last words")+len("a long answer")) {
				t.Errorf("counted %d and %d bytes", r.Sent, r.Received)
			}
			if tt.reason == ClientClosed && r.Sent != uint64(len("the last words")) {
				t.Errorf("counted %d bytes from the client", r.Sent)
			}
		})
	}
}

func TestStreamReset(t *testing.T) { overPaths(t, testStreamReset) }

func testStreamReset(t *testing.T, p path) {
	for _, tt := range []struct {
		name   string
		first  func(client, upstream *net.TCPConn) (*net.TCPConn, *net.TCPConn)
		reason Reason
	}{
		{"by the client", func(c, u *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return c, u }, ClientReset},
		{"by the upstream", func(c, u *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return u, c }, UpstreamReset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, upstream, _, result := p.relayed(t, 0)
			first, second := tt.first(client, upstream)
			send(t, first, "x")
			receive(t, second, "x")
			if err := first.SetLinger(0); err != nil {
				t.Fatal(err)
			}
			first.Close()
			if err := receiveEnd(t, second); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other end sees %v, want a reset", err)
			}
			r := wait(t, result)
			p.took(t, r)
			if r.Reason != tt.reason || !errors.Is(r.Err, syscall.ECONNRESET) {
				t.Errorf("reason %q, error %v; want %q", r.Reason, r.Err, tt.reason)
			}
		})
	}
}

// A reset that comes when one direction has already ended in order is still a
// reset.
func TestStreamResetAfterHalfClose(t *testing.T) { overPaths(t, testStreamResetAfterHalfClose) }

func testStreamResetAfterHalfClose(t *testing.T, p path) {
	client, upstream, _, result := p.relayed(t, 0)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := receiveEnd(t, upstream); err != io.EOF {
		t.Fatal(err)
	}
	_ = upstream.SetLinger(0)
	upstream.Close()
	if err := receiveEnd(t, client); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	r := wait(t, result)
	p.took(t, r)
	if r.Reason != UpstreamReset {
		t.Errorf("reason %q", r.Reason)
	}
}

// A sender whose receiver resets learns of it although it only writes.
func TestStreamResetOfWriter(t *testing.T) { overPaths(t, testStreamResetOfWriter) }

func testStreamResetOfWriter(t *testing.T, p path) {
	client, upstream, _, result := p.relayed(t, 0)
	writing := make(chan error, 1)
	go func() {
		block := make([]byte, 64<<10)
		for {
			if _, err := client.Write(block); err != nil {
				writing <- err
				return
			}
		}
	}()
	receive(t, upstream, strings.Repeat("\x00", 1<<20))
	_ = upstream.SetLinger(0)
	upstream.Close()
	if err := <-writing; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the writer sees %v, want a reset", err)
	}
	r := wait(t, result)
	p.took(t, r)
	if r.Reason != UpstreamReset {
		t.Errorf("reason %q: %v", r.Reason, r.Err)
	}
}

func TestStreamIdleTimeout(t *testing.T) { overPaths(t, testStreamIdleTimeout) }

func testStreamIdleTimeout(t *testing.T, p path) {
	const idle = 150 * time.Millisecond
	untilInUse(t, func() bool { return streamIdleTimeout(t, p, idle) })
}

// untilInUse repeats a test of an idle timeout that was itself held up by a busy
// machine for so long that the end came too early, but rightly.
func untilInUse(t *testing.T, test func() (wasInUse bool)) {
	t.Helper()
	for range 10 {
		if test() {
			return
		}
	}
	t.Fatal("held up for longer than the idle timeout each time")
}

func streamIdleTimeout(t *testing.T, p path, idle time.Duration) (wasInUse bool) {
	// last is when the last exchange that came through began.
	last := time.Now()
	client, upstream, stream, result := p.relayed(t, idle)
	quiet := func(r Result) time.Duration { return stream.started.Add(r.Duration).Sub(last) }

	// Bytes in one direction keep both alive.
	for start := last; time.Since(start) < 3*idle; {
		began := time.Now()
		_, err := io.WriteString(upstream, "x")
		if err == nil {
			err = received(client, "x")
		}
		if err != nil {
			if r := wait(t, result); r.Reason == IdleTimeout && quiet(r) >= idle {
				return false
			}
			t.Fatalf("ended while in use: %v", err)
		}
		last = began
		time.Sleep(idle / 10)
	}
	for _, c := range []*net.TCPConn{client, upstream} {
		if err := receiveEnd(t, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("saw %v, want a reset", err)
		}
	}
	r := wait(t, result)
	p.took(t, r)
	if r.Reason != IdleTimeout || r.Err != nil {
		t.Errorf("reason %q, error %v", r.Reason, r.Err)
	}
	if quiet(r) < idle {
		t.Errorf("ended after %v of silence", quiet(r))
	}
	return true
}

// A receiver that has stopped reading is as idle as one that has nothing to
// read.
func TestStreamIdleWhileStalled(t *testing.T) { overPaths(t, testStreamIdleWhileStalled) }

func testStreamIdleWhileStalled(t *testing.T, p path) {
	client, _, _, result := p.relayed(t, 300*time.Millisecond)
	go func() {
		block := make([]byte, 64<<10)
		for {
			if _, err := client.Write(block); err != nil {
				return
			}
		}
	}()
	r := wait(t, result)
	p.took(t, r)
	if r.Reason != IdleTimeout {
		t.Errorf("reason %q: %v", r.Reason, r.Err)
	}
}

func TestStreamAbort(t *testing.T) { overPaths(t, testStreamAbort) }

func testStreamAbort(t *testing.T, p path) {
	client, upstream, stream, result := p.relayed(t, time.Hour)
	send(t, client, "x")
	receive(t, upstream, "x")
	stream.Abort(Shutdown)
	stream.Abort(IdleTimeout)
	for _, c := range []*net.TCPConn{client, upstream} {
		if err := receiveEnd(t, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("saw %v, want a reset", err)
		}
	}
	r := wait(t, result)
	p.took(t, r)
	if r.Reason != Shutdown || r.Err != nil {
		t.Errorf("reason %q, error %v", r.Reason, r.Err)
	}
}

// wholeConn is a side that cannot be closed by half.
type wholeConn struct{ net.Conn }

func (wholeConn) CloseWrite() error   { return errors.ErrUnsupported }
func (wholeConn) SetLinger(int) error { return errors.ErrUnsupported }

func TestStreamWithoutHalfClose(t *testing.T) {
	client, down := pair(t)
	up, upstream := pair(t)
	result := make(chan Result, 1)
	go func() { result <- NewStream(wholeConn{down}, up, 0).Run() }()
	send(t, upstream, "bye")
	upstream.Close()
	receive(t, client, "bye")
	if err := receiveEnd(t, client); err != io.EOF {
		t.Errorf("the client sees %v, want EOF", err)
	}
	if r := wait(t, result); r.Reason != UpstreamClosed || r.Err != nil {
		t.Errorf("reason %q, error %v", r.Reason, r.Err)
	}
}

// What goes in comes out, with reads and writes of all sizes, both ways at
// once.
func TestStreamContent(t *testing.T) { overPaths(t, testStreamContent) }

func testStreamContent(t *testing.T, p path) {
	client, upstream, stream, result := p.relayed(t, 0)
	data := make([]byte, 8<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(data)

	transfer := func(from, to *net.TCPConn) chan error {
		failed := make(chan error, 2)
		go func() {
			r := bytes.NewReader(data)
			for size := 1; r.Len() > 0; size = size*3%100_003 + 1 {
				if _, err := io.CopyN(from, r, int64(size)); err != nil && err != io.EOF {
					failed <- err
					return
				}
			}
			failed <- from.CloseWrite()
		}()
		go func() {
			got, err := io.ReadAll(to)
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("other bytes")
			}
			failed <- err
		}()
		return failed
	}
	there, back := transfer(client, upstream), transfer(upstream, client)
	for range 2 {
		if err := <-there; err != nil {
			t.Error(err)
		}
		if err := <-back; err != nil {
			t.Error(err)
		}
	}
	r := wait(t, result)
	p.took(t, r)
	if sent, received := stream.Counts(); sent != uint64(len(data)) || received != uint64(len(data)) || r.Sent != sent || r.Received != received {
		t.Errorf("counted %d and %d of %d bytes", sent, received, len(data))
	}
}

// descriptors counts the open files of this process, or returns 0 where that
// cannot be known.
func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// settles waits until count falls to at most want.
func settles(t testing.TB, what string, count func() int, want int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for count() > want {
		if time.Now().After(deadline) {
			t.Fatalf("%d %s left, %d at the start", count(), what, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestStreamsLeaveNothing(t *testing.T) { overPaths(t, testStreamsLeaveNothing) }

func testStreamsLeaveNothing(t *testing.T, p path) {
	connections := 2_500
	if testing.Short() {
		connections = 200
	}
	public, home := listen(t), listen(t)
	go serve(home, func(c *net.TCPConn) {
		defer c.Close()
		// Hidden from io.Copy, whose splice keeps pipes for later.
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	})
	var group Group
	var total, spliced atomic.Uint64
	go serve(public, func(c *net.TCPConn) {
		up, err := net.DialTCP("tcp", nil, home.Addr().(*net.TCPAddr))
		if err != nil {
			c.Close()
			return
		}
		r := group.Run(NewStream(p.conn(c), p.conn(up), time.Minute))
		total.Add(r.Sent + r.Received)
		spliced.Add(r.Spliced)
	})

	goroutines, files := runtime.NumGoroutine(), descriptors()
	for i := range connections {
		c, err := net.DialTCP("tcp", nil, public.Addr().(*net.TCPAddr))
		if err != nil {
			t.Fatal(err)
		}
		// Some of it is on its way when a connection is reset.
		text := strings.Repeat("ping", 1+i%3*10_000)
		send(t, c, text)
		receive(t, c, text[:len(text)/(1+i%2)])
		if i%3 == 0 {
			_ = c.SetLinger(0)
		}
		c.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := group.Wait(ctx); err != nil {
		t.Fatalf("%d streams left", group.Len())
	}
	p.took(t, Result{Sent: total.Load(), Spliced: spliced.Load()})
	settles(t, "goroutines", runtime.NumGoroutine, goroutines)
	settles(t, "descriptors", descriptors, files)
}

func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func serve(ln *net.TCPListener, handle func(*net.TCPConn)) {
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		go handle(c)
	}
}

func TestGroupAbort(t *testing.T) { overPaths(t, testGroupAbort) }

func testGroupAbort(t *testing.T, p path) {
	var group Group
	results := make(chan Result, 3)
	for range 3 {
		_, down := pair(t)
		up, _ := pair(t)
		stream := NewStream(p.conn(down), p.conn(up), 0)
		go func() { results <- group.Run(stream) }()
	}
	settles(t, "streams not running", func() int { return 3 - group.Len() }, 0)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := group.Wait(ctx); err == nil {
		t.Error("Wait says that running streams have ended")
	}
	group.Abort(Shutdown)
	if err := group.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	for range 3 {
		if r := wait(t, results); r.Reason != Shutdown {
			t.Errorf("reason %q", r.Reason)
		}
	}
	if err := group.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// BenchmarkStream is the throughput of one direction over loopback, both
// ends' own copies included.
func BenchmarkStream(b *testing.B) {
	client, upstream, _, result := path{conn: asItIs}.relayed(b, 0)
	_ = client.SetDeadline(time.Time{})
	_ = upstream.SetDeadline(time.Time{})
	block := make([]byte, 128<<10)
	b.SetBytes(int64(len(block)))
	go func() {
		for range b.N {
			if _, err := client.Write(block); err != nil {
				return
			}
		}
		client.CloseWrite()
	}()
	n, err := io.Copy(io.Discard, upstream)
	if err != nil || n != int64(b.N)*int64(len(block)) {
		b.Fatalf("%d bytes, %v", n, err)
	}
	upstream.Close()
	<-result
}
