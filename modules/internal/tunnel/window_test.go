package tunnel

import (
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// batchOf returns n packets in buffers of their own.
func batchOf(n int) (batch [][]byte) {
	for range n {
		batch = append(batch, make([]byte, 100))
	}
	return batch
}

// enterAll has a reader of its own take a batch.
func enterAll(w *window, batch [][]byte) {
	reader := intake{window: w}
	reader.enter(batch, everyPacket)
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
			enterAll(w, batchOf(9))
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
				enterAll(w, batch)
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
				enterAll(w, batchOf(9))
			}
			enterAll(w, last)
			w.leave(last)
			if w.inside != 0 || len(w.marks) > 0 {
				t.Errorf("%d are inside, %d marks", w.inside, len(w.marks))
			}
		})
	})
	t.Run("all dropped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWindow(10)
			enterAll(w, batchOf(20))
			for range 2 {
				if took := waited(w); took != windowPatience {
					t.Errorf("it waited for %s", took)
				}
			}
			next := batchOf(20)
			enterAll(w, next)
			w.leave(next)
			if took := waited(w); took != 0 {
				t.Errorf("when the next had left it waited for %s", took)
			}
			for range 2 * marksMax {
				enterAll(w, next)
			}
			if len(w.marks) != marksMax || w.inside != marksMax*len(next) {
				t.Errorf("%d marks for %d packets", len(w.marks), w.inside)
			}
		})
	})
	t.Run("a buffer used again", func(t *testing.T) {
		w := newWindow(10)
		dropped := batchOf(1)
		enterAll(w, dropped)
		enterAll(w, batchOf(3))
		enterAll(w, dropped)
		w.leave(dropped)
		w.leave(dropped)
		if w.inside != 0 || len(w.marks) > 0 {
			t.Errorf("%d are inside, %d marks", w.inside, len(w.marks))
		}
	})
	t.Run("dropped at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWindow(10)
			reader := intake{window: w}
			bufs := batchOf(12)
			for _, tt := range []struct {
				name        string
				kept        []int // their buffers are others then
				inside      int
				took        time.Duration
				leave, left int // which of the kept leaves, and how many are inside then
			}{
				{"all", nil, 0, 0, -1, 0},
				{"all but two", []int{3, 8}, 2, 0, 8, 0},
				{"the last", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 11, windowPatience, 10, 0},
				{"none", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 12, windowPatience, 11, 0},
			} {
				reader.enter(bufs, everyPacket)
				former := slices.Clone(bufs)
				for _, place := range tt.kept {
					bufs[place] = make([]byte, 100)
				}
				if tt.took == 0 {
					begin := time.Now()
					reader.wait(bufs)
					if took := time.Since(begin); took != 0 || w.inside != tt.inside {
						t.Errorf("%s: waited for %s, %d are inside, want %d", tt.name, took, w.inside, tt.inside)
					}
				} else {
					go func() {
						time.Sleep(windowPatience / 2)
						w.mu.Lock()
						inside := w.inside
						w.mu.Unlock()
						if inside != tt.inside {
							t.Errorf("%s: %d are inside, want %d", tt.name, inside, tt.inside)
						}
						w.leave(former[tt.leave : tt.leave+1])
					}()
					begin := time.Now()
					reader.wait(bufs)
					if took := time.Since(begin); took != windowPatience/2 {
						t.Errorf("%s: waited for %s", tt.name, took)
					}
				}
				if tt.took == 0 && tt.leave >= 0 {
					w.leave(former[tt.leave : tt.leave+1])
				}
				if w.inside != tt.left || len(w.marks) > 0 {
					t.Errorf("%s: %d are inside, %d marks", tt.name, w.inside, len(w.marks))
				}
				reader.given = nil
			}
		})
	})
	t.Run("handshakes", func(t *testing.T) {
		w := newWindow(10)
		reader := intake{window: w}
		batch := batchOf(4)
		for i, kind := range []byte{device.MessageTransportType, device.MessageInitiationType, device.MessageTransportType, device.MessageCookieReplyType} {
			batch[i][0] = kind
		}
		reader.enter(batch, isTransport)
		if w.inside != 2 {
			t.Errorf("%d are inside, want 2", w.inside)
		}
		w.leave(batch[2:3])
		if w.inside != 0 {
			t.Errorf("%d are inside", w.inside)
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
	inner, bind := &windowDevice{stubTUN{}, intake{window: out}, in, stalls}, &windowBind{Bind: stubBind{}, out: out, in: in, stalls: stalls}
	receives, _, err := bind.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	up, down := batchOf(4), batchOf(7)
	for _, packet := range down {
		packet[0] = device.MessageTransportType
	}
	inner.Read(up, make([]int, len(up)), 0)
	receives[0](down, nil, nil)
	if out.inside != 4 || in.inside != 7 {
		t.Errorf("%d and %d are inside", out.inside, in.inside)
	}
	bind.Send(up, nil)
	inner.Write(down, 0)
	if out.inside != 0 || in.inside != 0 {
		t.Errorf("%d and %d are inside", out.inside, in.inside)
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
