package relay

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pipe is a kernel pipe that bytes cross between two sockets. It is lent empty
// and taken back empty.
type pipe struct {
	r, w int

	// size is what the pipe was granted, in bytes. The kernel counts in pages:
	// a pipe of 128 KiB has 32 places, each for a piece of a segment.
	size int
}

const (
	// pipeSize is a compromise between how much one call moves and how many
	// pipes there can be. Of segments as a network card hands them up, some
	// 1,448 bytes for each page of the pipe, one call took 22 to 65 KiB with
	// 64 KiB, 43 to 88 KiB with 128 KiB and 61 to 139 KiB with 256 KiB. With
	// 1,000 busy connections, 256 pipes of 64 KiB cost as much CPU as 128 of
	// 128 KiB and less than 64 of 256 KiB.
	pipeSize = 128 << 10

	// pipeFloor is the least that is worth having. When an unprivileged
	// user's quota is used up, new pipes are of two pages, and those took one
	// or two segments a call: a copy with a large buffer costs less.
	pipeFloor = 64 << 10

	// pipeShare is the part of the quota that we take, 1/pipeShare. What is
	// left is for whatever else runs as this user, as io.Copy in Caddy's own
	// proxy, which also splices. Half is 256 pipes where the kernel's default
	// is unchanged; a quarter cost 200 to 1,000 busy connections a fifth to a
	// third more CPU.
	pipeShare = 2

	// pipeIdle is how long pipes are kept that nobody needs. Opening
	// and closing one costs 7 µs.
	pipeIdle = time.Second
)

// pipes are the pipes of all Streams.
var pipes = &pipePool{size: pipeSize, limit: pipeLimit()}

// pipePool lends pipes, and opens at most limit of them. Nobody ever waits for
// one: get returns nil if there is none.
type pipePool struct {
	size, limit int

	mu   sync.Mutex
	open int     // lent and idle
	idle []*pipe // the longest idle first; lent from the end

	// unused is how many pipes have been idle since the last trim.
	unused   int
	trimming bool // trim will run

	// scarce is until when there is no use in asking the kernel for more.
	scarce time.Time
}

// pipeLimit is how many pipes of pipeSize fit in our share of what the kernel
// allows an unprivileged user.
func pipeLimit() int {
	const usual = 16384 // pages: the kernel's default
	pages := usual
	if text, err := os.ReadFile("/proc/sys/fs/pipe-user-pages-soft"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n > 0 { // 0: no limit
			pages = n
		}
	}
	return max(pages/pipeShare*os.Getpagesize()/pipeSize, 1)
}

// get returns an empty pipe, or nil if there is none to be had.
func (p *pipePool) get() *pipe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.idle) - 1; last >= 0 {
		lent := p.idle[last]
		p.idle[last] = nil
		p.idle = p.idle[:last]
		p.unused = min(p.unused, last)
		return lent
	}
	if p.open >= p.limit || time.Now().Before(p.scarce) {
		return nil
	}
	opened, err := openPipe(p.size)
	if err != nil {
		p.scarce = time.Now().Add(pipeIdle)
		return nil
	}
	p.open++
	return opened
}

// put takes a pipe back, which must be empty.
func (p *pipePool) put(back *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, back)
	if !p.trimming {
		p.trimming = true
		p.unused = 0
		time.AfterFunc(pipeIdle, p.trim)
	}
}

// discard closes a pipe that has bytes in it.
func (p *pipePool) discard(full *pipe) {
	full.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
}

// trim closes the pipes that nobody has needed since it ran last.
func (p *pipePool) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, unused := range p.idle[:p.unused] {
		unused.close()
	}
	p.open -= p.unused
	p.idle = append([]*pipe(nil), p.idle[p.unused:]...)
	p.unused = len(p.idle)
	if p.trimming = p.unused > 0; p.trimming {
		time.AfterFunc(pipeIdle, p.trim)
	}
}

// openPipe opens a pipe of pipeSize, or of what the user's quota still allows,
// down to pipeFloor.
func openPipe(want int) (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	opened := &pipe{r: fds[0], w: fds[1]}
	size, err := unix.FcntlInt(uintptr(opened.w), unix.F_SETPIPE_SZ, want)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(opened.w), unix.F_GETPIPE_SZ, 0)
	}
	if err == nil && size < pipeFloor {
		err = unix.EPERM
	}
	if err != nil {
		opened.close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	opened.size = size
	return opened, nil
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}
