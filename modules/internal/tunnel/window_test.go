package tunnel

import (
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// batchOf returns n packets in buffers of their own.
func batchOf(n int) (batch [][]byte) {
	for range n {
		batch = append(batch, make([]byte, 100))
	}
	return batch
}

// waited is how long a call of wait took.
func waited(w *window) time.Duration {
	begin := time.Now()
	w.wait()
	return time.Since(begin)
}

func TestWindow(t *testing.T) {
	t.Run("room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWindow(10)
			w.enter(nil)
			w.enter(batchOf(9))
			if took := waited(w); took != 0 {
				t.Errorf("it waited for %s", took)
			}
		})
	})
	t.Run("full until the oldest leave", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWindow(10)
			batches := [][][]byte{batchOf(5), batchOf(5), batchOf(5)}
			for _, batch := range batches {
				w.enter(batch)
			}
			go func() {
				time.Sleep(windowPatience / 2)
				w.leave(batches[0]) // 10 are left
				time.Sleep(windowPatience / 2)
				w.leave(batchOf(1)) // nothing that has entered
				time.Sleep(windowPatience / 4)
				w.leave(batches[1][2:])
			}()
			if took := waited(w); took != windowPatience*5/4 {
				t.Errorf("it waited for %s", took)
			}
			if took := waited(w); took != 0 {
				t.Errorf("with room it waited for %s", took)
			}
		})
	})
	t.Run("those before are gone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWindow(10)
			last := batchOf(1)
			for range 100 {
				w.enter(batchOf(9))
			}
			w.enter(last)
			w.leave(last)
			if w.entered != w.left || len(w.marks) > 0 {
				t.Errorf("%d of %d have left, %d marks", w.left, w.entered, len(w.marks))
			}
		})
	})
	t.Run("all dropped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWindow(10)
			w.enter(batchOf(20))
			if took := waited(w); took != windowPatience {
				t.Errorf("it waited for %s", took)
			}
			if took := waited(w); took != 0 {
				t.Errorf("then it waited for %s", took)
			}
		})
	})
	t.Run("a buffer used again", func(t *testing.T) {
		w := newWindow(10)
		dropped := batchOf(1)
		w.enter(dropped)
		w.enter(batchOf(3))
		w.enter(dropped)
		w.leave(dropped)
		w.leave(dropped)
		if w.entered != w.left || len(w.marks) > 0 {
			t.Errorf("%d of %d have left, %d marks", w.left, w.entered, len(w.marks))
		}
	})
}

// stubTUN and stubBind take and give whatever they are told.
type stubTUN struct{ tun.Device }

func (stubTUN) Read(bufs [][]byte, _ []int, _ int) (int, error) { return len(bufs), nil }

func (stubTUN) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }

type stubBind struct{ conn.Bind }

func (stubBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive := func(packets [][]byte, _ []int, _ []conn.Endpoint) (int, error) { return len(packets), nil }
	return []conn.ReceiveFunc{receive}, port, nil
}

func (stubBind) Send([][]byte, conn.Endpoint) error { return nil }

// What is read leaves when it is sent, what is received when it is written.
func TestWindowEnds(t *testing.T) {
	out, in := newWindow(10), newWindow(10)
	stalls := newStalls(everybody)
	device, bind := &windowDevice{stubTUN{}, out, in, stalls}, &windowBind{Bind: stubBind{}, out: out, in: in, stalls: stalls}
	receives, _, err := bind.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	up, down := batchOf(4), batchOf(7)
	device.Read(up, make([]int, len(up)), 0)
	receives[0](down, nil, nil)
	if got := []uint64{out.entered, out.left, in.entered, in.left}; !slices.Equal(got, []uint64{4, 0, 7, 0}) {
		t.Errorf("counted %d", got)
	}
	bind.Send(up, nil)
	device.Write(down, 0)
	if got := []uint64{out.entered, out.left, in.entered, in.left}; !slices.Equal(got, []uint64{4, 4, 7, 7}) {
		t.Errorf("counted %d", got)
	}
}

// wireguard-go keeps packets in their buffers: if an update of it does not, the
// windows only wait.
func TestWindowRecognizesBuffers(t *testing.T) {
	relayConfig, homeConfig := ends(t)
	relay, home := New("relay"), New("home")
	r, h := claim(t, relay, relayConfig), claim(t, home, homeConfig)
	echoAt(t, h, 7)
	stream := dial(t, r, homeAddress, 7)
	const size = 8 << 20
	go stream.Write(make([]byte, size))
	if _, err := io.CopyN(io.Discard, stream, size); err != nil {
		t.Fatal(err)
	}
	for name, w := range map[string]*window{
		"to home": relay.live.out, "from home": relay.live.in, "to the relay": home.live.out, "from the relay": home.live.in,
	} {
		w.mu.Lock()
		// Of each batch the last, of up to 128 packets.
		if w.recognized < w.entered/256 || w.entered == 0 {
			t.Errorf("%s %d packets entered, %d batches were recognized", name, w.entered, w.recognized)
		}
		w.mu.Unlock()
	}
}
