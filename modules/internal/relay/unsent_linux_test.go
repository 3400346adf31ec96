package relay

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNextUnsent(t *testing.T) {
	for _, tt := range []struct {
		name        string
		bound, sent int
		elapsed     time.Duration
		want        int
	}{
		{"a fast line", 1 << 20, 54_125_000, time.Second, 3_247_500},
		{"a line faster than most", 1 << 20, 1 << 30, time.Second, unsentMost},
		{"a slow line", 200_000, 337_500, 100 * time.Millisecond, 202_500},
		{"much slower than before", 2 << 20, 337_500, 100 * time.Millisecond, 1 << 20},
		{"very slow", 70_000, 100, 10 * time.Second, unsentLeast},
		{"nothing", 1 << 20, 0, time.Second, 512 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := nextUnsent(tt.bound, tt.sent, tt.elapsed); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}

// The bound goes with the pace of the reader, down and up, whether bytes are
// spliced or copied.
func TestUnsentFollowsRate(t *testing.T) {
	for _, p := range paths {
		t.Run(p.name, func(t *testing.T) {
			p.set(t)
			testUnsentFollowsRate(t, p)
		})
	}
}

func testUnsentFollowsRate(t *testing.T, p path) {
	client, down := pair(t)
	up, upstream := pair(t)
	// What waits must be in the sender's buffer.
	if err := client.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	stream := NewStream(p.conn(down), p.conn(up), 0)
	result := make(chan Result, 1)
	go func() { result <- stream.Run() }()
	go func() {
		for block := make([]byte, 64<<10); ; {
			if _, err := upstream.Write(block); err != nil {
				return
			}
		}
	}()
	var pause atomic.Int64
	pause.Store(int64(10 * time.Millisecond))
	go func() {
		for block := make([]byte, 32<<10); ; time.Sleep(time.Duration(pause.Load())) {
			if _, err := io.ReadFull(client, block); err != nil {
				return
			}
		}
	}()
	unsent := func() (bytes int) {
		raw, err := down.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if e := raw.Control(func(fd uintptr) {
			bytes, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
		}); e != nil || err != nil {
			t.Fatal(e, err)
		}
		return bytes
	}
	outside := func(least, most int) func() int {
		return func() int {
			if n := unsent(); n < least || n > most {
				return max(n, 1)
			}
			return 0
		}
	}
	// At most 3.3 MB a second, which are 197 KB in 60 ms.
	settles(t, "a slow reader's unsent bytes", outside(unsentLeast, 200<<10), 0)
	slow := unsent()
	pause.Store(int64(time.Millisecond))
	settles(t, "a faster reader's unsent bytes", outside(2*slow, unsentMost), 0)
	stream.Abort(Shutdown)
	p.took(t, wait(t, result))
}

// What a socket takes counts for its rate, spliced or copied.
func TestUnsentCountsAll(t *testing.T) {
	const large, small = 1000, 100
	setBulk(t, large)
	client, down := pair(t)
	up, upstream := pair(t)
	s := NewStream(down, up, 0)
	d := &direction{stream: s, watch: s.watch(down, clientSide), count: &s.sent, src: down, dst: up, in: rawConn(down), out: rawConn(up)}
	done := make(chan error, 1)
	go func() {
		readErr, writeErr := d.run()
		done <- errors.Join(readErr, writeErr)
	}()
	var total int
	for _, size := range []int{small, large, small, small, large, large} {
		text := strings.Repeat("x", size)
		send(t, client, text)
		receive(t, upstream, text)
		total += size
	}
	client.CloseWrite()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if want := uint64(small + large); s.spliced.Load() != want {
		t.Errorf("spliced %d bytes, want %d", s.spliced.Load(), want)
	}
	if d.unsent.taken != total || int(s.sent.Load()) != total {
		t.Errorf("of %d bytes %d count for the rate and %d in all", total, d.unsent.taken, s.sent.Load())
	}
}
