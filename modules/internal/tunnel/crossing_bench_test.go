package tunnel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

const (
	// crossingOffset is the most by which one end calls before the other.
	crossingOffset = 50 * time.Millisecond

	// crossingAgain is how often an end sends until something has arrived, and
	// crossingSteady while a session is renewed.
	crossingAgain  = 250 * time.Millisecond
	crossingSteady = 10 * time.Millisecond

	// crossingPatience is when a trial is given up, and counts as that long.
	crossingPatience = 20 * time.Second

	// crossingAtOnce is how many trials may wait at the same time. They begin
	// one after the other.
	crossingAtOnce = 8

	// rekeyTimeout is WireGuard's least time between two calls.
	rekeyTimeout = 5 * time.Second
)

// BenchmarkCrossing measures what it costs that both ends begin a handshake at
// about the same moment, over lines of several lengths: how long it takes until
// data has passed both ways for the first time, where both ends know each
// other's endpoint or only one does, and the longest gap in a steady flow both
// ways when both renew a session. Stock is wireguard-go as it comes.
//
//	go test -run '^$' -bench Crossing -benchtime 40x ./modules/internal/tunnel
func BenchmarkCrossing(b *testing.B) {
	for _, pair := range [][2]string{{"stock", "stock"}, {"ours", "stock"}, {"ours", "ours"}} {
		for _, delay := range []time.Duration{0, 5 * time.Millisecond, 15 * time.Millisecond, 50 * time.Millisecond} {
			for _, what := range []string{"both-know", "one-knows", "renewal"} {
				b.Run(fmt.Sprintf("%s-%s/delay=%v/%s", pair[0], pair[1], delay, what), func(b *testing.B) {
					trials(b, func(offset time.Duration, next func()) time.Duration {
						t := &trial{B: b, pair: pair}
						defer t.end()
						ends := t.ends(delay, what != "one-knows")
						if what == "renewal" {
							return t.renew(ends, offset, next)
						}
						return t.meet(ends, offset, next)
					})
				})
			}
		}
	}
}

// trials makes b.N trials, in which one end calls by an offset before the other,
// and reports how long they say it took.
func trials(b *testing.B, try func(offset time.Duration, next func()) time.Duration) {
	var turn, mu sync.Mutex
	var took []time.Duration
	offsets := make(chan time.Duration)
	var done sync.WaitGroup
	for range crossingAtOnce {
		done.Go(func() {
			for offset := range offsets {
				turn.Lock()
				next := sync.OnceFunc(turn.Unlock)
				t := try(offset, next)
				next()
				mu.Lock()
				took = append(took, t)
				mu.Unlock()
			}
		})
	}
	for i := range b.N {
		offset := crossingOffset * time.Duration(i/2) / time.Duration(max(b.N/2, 1))
		if i%2 == 1 {
			offset = -offset
		}
		offsets <- offset
	}
	close(offsets)
	done.Wait()
	slices.Sort(took)
	late, _ := slices.BinarySearch(took, time.Second)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ms(took[len(took)/2]), "ms-median")
	b.ReportMetric(ms(took[len(took)*95/100]), "ms-p95")
	b.ReportMetric(ms(took[len(took)-1]), "ms-max")
	b.ReportMetric(float64(len(took)-late), "over-1s")
}

// trial is a testing.TB whose Cleanups come at its own end.
type trial struct {
	*testing.B
	pair     [2]string
	cleanups []func()
}

func (t *trial) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

func (t *trial) end() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}

func (t *trial) ends(delay time.Duration, known bool) (ends [2]*end) {
	configs, w := wiredConfigs(t, known)
	w.delay = delay
	w.start()
	for i, kind := range t.pair {
		if kind == "stock" {
			ends[i] = stockEnd(t, configs[i])
		} else {
			ends[i] = ourEnd(t, configs[i], zap.NewNop())
		}
	}
	return ends
}

// meet lets two ends begin to speak and returns how long the one whose data took
// longer has waited. Another trial may begin when this one is in a stall.
func (t *trial) meet(ends [2]*end, offset time.Duration, next func()) time.Duration {
	defer time.AfterFunc(time.Second, next).Stop()
	sockets, others := wiredSockets(t, ends)
	var waited [2]time.Duration
	var sending, arriving sync.WaitGroup
	stop := make(chan struct{})
	for i, at := range moments(offset) {
		sending.Go(func() {
			time.Sleep(time.Until(at))
			for {
				sockets[i].WriteTo([]byte("x"), others[i])
				select {
				case <-stop:
					return
				case <-time.After(crossingAgain):
				}
			}
		})
		arriving.Go(func() {
			sockets[1-i].SetReadDeadline(at.Add(crossingPatience))
			t.read(sockets[1-i])
			waited[i] = time.Since(at)
		})
	}
	arriving.Wait()
	close(stop)
	sending.Wait()
	return max(waited[0], waited[1])
}

// renew lets two ends that have a session begin another, while both speak all
// the time, and returns the longest time in which one of them heard nothing.
func (t *trial) renew(ends [2]*end, offset time.Duration, next func()) time.Duration {
	sockets, others := wiredSockets(t, ends)
	sockets[0].WriteTo([]byte("x"), others[0])
	sockets[1].SetReadDeadline(time.Now().Add(crossingPatience))
	t.read(sockets[1])
	next()
	time.Sleep(rekeyTimeout + crossingOffset)

	var gaps [2]time.Duration
	var sending, arriving sync.WaitGroup
	stop := make(chan struct{})
	for i, at := range moments(offset) {
		sending.Go(func() {
			for {
				sockets[i].WriteTo([]byte("x"), others[i])
				select {
				case <-stop:
					return
				case <-time.After(crossingSteady):
				}
			}
		})
		arriving.Go(func() {
			sockets[i].SetReadDeadline(at.Add(rekeyTimeout + time.Second))
			for last := time.Now(); t.read(sockets[i]); last = time.Now() {
				gaps[i] = max(gaps[i], time.Since(last))
			}
		})
		time.AfterFunc(time.Until(at), func() { ends[i].peer.SendHandshakeInitiation(false) })
	}
	arriving.Wait()
	close(stop)
	sending.Wait()
	return max(gaps[0], gaps[1])
}

// moments are when the ends call.
func moments(offset time.Duration) [2]time.Time {
	begin := time.Now().Add(20 * time.Millisecond)
	return [2]time.Time{begin.Add(max(-offset, 0)), begin.Add(max(offset, 0))}
}

// read tells whether something has come in time.
func (t *trial) read(socket netstack.UDPConn) bool {
	_, _, err := socket.ReadFrom(make([]byte, 16))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	return err == nil
}
