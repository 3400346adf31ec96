package line

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Deliveries come out by time, and those of one time as they were sent.
func TestWaiting(t *testing.T) {
	var w waiting
	random := rand.New(rand.NewPCG(1, 2))
	var popped []delivery
	for sequence := range uint64(10_000) {
		w.push(delivery{at: time.Duration(random.IntN(500)), sequence: sequence})
		if random.IntN(3) == 0 {
			w.pop()
		}
	}
	for len(w) > 0 {
		popped = append(popped, w.pop())
	}
	for i := 1; i < len(popped); i++ {
		a, b := popped[i-1], popped[i]
		if a.at > b.at || a.at == b.at && a.sequence > b.sequence {
			t.Fatalf("%v before %v", a, b)
		}
	}
	if len(popped) < 5_000 {
		t.Errorf("only %d are left", len(popped))
	}
}

// The real-time threads must not allocate; see direction.buffer.
func TestNothingAllocated(t *testing.T) {
	device, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	queue, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(queue)
	d := &direction{from: queue, to: int(device.Fd()), start: time.Now(), scheduler: newScheduler(Impairment{Loss: 0.1, Duplicate: 0.1, Jitter: Duration(time.Millisecond)}, 1)}
	packet, buf := make([]byte, 1400), make([]byte, 8)
	round := func() {
		for range 100 {
			d.offer(time.Since(d.start), packet)
		}
		for len(d.waiting) > 0 {
			d.rest(d.read(buf))
			d.deliver()
		}
	}
	for range 10 {
		round()
	}
	if n := testing.AllocsPerRun(10, round); n > 0 {
		t.Errorf("%g allocations for 100 packets", n)
	}
}
