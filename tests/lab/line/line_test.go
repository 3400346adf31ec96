package line

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

const (
	aIP = "10.9.0.1"
	bIP = "10.9.0.2"
)

// joined is a line between two namespaces of their own.
func joined(t *testing.T, aToB, bToA Impairment) (l *Line, a, b *testnet.Namespace) {
	t.Helper()
	testnet.Need(t, "ip", "ping")
	a, b = testnet.NewNamespace(t, "a"), testnet.NewNamespace(t, "b")
	for _, namespace := range []*testnet.Namespace{a, b} {
		// So that nobody looks for routers on the line.
		namespace.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "1")
	}
	l, err := New(Config{
		A:    End{Name: "line", Enter: a.Do},
		B:    End{Name: "line", Enter: b.Do},
		AtoB: aToB,
		BtoA: bToA,
		Seed: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	a.IP(t, "addr add "+aIP+"/24 dev line")
	b.IP(t, "addr add "+bIP+"/24 dev line")
	return l, a, b
}

// count is what the direction from a to b has counted.
func count(t *testing.T, l *Line) Counters {
	t.Helper()
	c, _, err := l.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// stream is what a UDP stream over the line showed.
type stream struct {
	sent, received int
	rate           float64 // of IP packets, bit/s, as received
	delays         []time.Duration
}

func (s *stream) delay(part float64) time.Duration {
	slices.Sort(s.delays)
	return s.delays[int(part*float64(len(s.delays)-1))]
}

// udpHeaders are IPv4's and UDP's.
const udpHeaders = 28

// send sends UDP packets of size bytes (IP included) from a to b, at rate
// bit/s, for some time, and watches them arrive.
func send(t *testing.T, a, b *testnet.Namespace, size int, rate int64, duration time.Duration) *stream {
	t.Helper()
	receiver := b.ListenPacket(t, "udp4", bIP+":9")
	receiver.SetReadBuffer(8 << 20)
	sender := a.ListenPacket(t, "udp4", aIP+":0")
	to := &net.UDPAddr{IP: net.ParseIP(bIP), Port: 9}

	s := new(stream)
	start := time.Now()
	var first, last time.Duration
	var receiving sync.WaitGroup
	receiving.Add(1)
	go func() {
		defer receiving.Done()
		buf := make([]byte, 2048)
		for {
			n, err := receiver.Read(buf)
			if err != nil {
				return
			}
			now := time.Since(start)
			if s.received == 0 {
				first = now
			}
			last = now
			s.received++
			s.delays = append(s.delays, now-time.Duration(binary.BigEndian.Uint64(buf)))
			_ = n
		}
	}()
	packet := make([]byte, size-udpHeaders)
	gap := airtime(int64(size), rate)
	for next := time.Duration(0); next < duration; next += gap {
		for {
			wait := next - time.Since(start)
			if wait <= 0 {
				break
			}
			ts := unix.NsecToTimespec(int64(wait))
			unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
		}
		binary.BigEndian.PutUint64(packet, uint64(time.Since(start)))
		if _, err := sender.WriteTo(packet, to); err != nil {
			t.Fatal(err)
		}
		s.sent++
	}
	// All that is on the way arrives, unless it is lost.
	receiver.SetReadDeadline(time.Now().Add(time.Second))
	receiving.Wait()
	if s.received < 2 {
		t.Fatalf("%d of %d packets arrived", s.received, s.sent)
	}
	s.rate = float64(s.received-1) * float64(size) * 8 / (last - first).Seconds()
	return s
}

var calibration = flag.String("calibration", "", "file to add a table's row to for each calibration")

// row is a calibration's figures: in the log, and in a file if one is named.
func row(t *testing.T, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	t.Log(text)
	if *calibration == "" {
		return
	}
	file, err := os.OpenFile(*calibration, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := fmt.Fprintf(file, "| %s |\n", text); err != nil {
		t.Fatal(err)
	}
}

// extra is by how many milliseconds a part of the packets was later than a
// line without a queue has it.
func extra(s *stream, part float64, delay time.Duration, rate int64) float64 {
	return float64(s.delay(part)-delay-airtime(1400, rate)) / float64(time.Millisecond)
}

// TestCalibration prints how true the line is. What decides is the scheduler's
// own tests, and here that the line neither loses nor gains a packet; how late
// this process gets a CPU depends on who else uses the machine.
func TestCalibration(t *testing.T) {
	for _, test := range []struct {
		name string
		rate int64
		load float64
	}{
		{"26.9 Mbit/s, half load", 26_900_000, 0.5},
		{"433 Mbit/s, half load", 433_000_000, 0.5},
		{"500 Mbit/s, half load", 500_000_000, 0.5},
		{"26.9 Mbit/s, over load", 26_900_000, 1.3},
		{"433 Mbit/s, over load", 433_000_000, 1.1},
		{"500 Mbit/s, over load", 500_000_000, 1.1},
	} {
		t.Run(test.name, func(t *testing.T) {
			const delay = 15500 * time.Microsecond
			impairment := Impairment{Rate: test.rate, Delay: Duration(delay), QueueTime: Duration(50 * time.Millisecond)}
			l, a, b := joined(t, impairment, impairment)
			s := send(t, a, b, 1400, int64(test.load*float64(test.rate)), 2*time.Second)
			c := count(t, l)
			row(t, "%s | %.2f Mbit/s | p50 %+.2f ms, p95 %+.2f ms, max %+.2f ms | %d of %d lost, %d dropped by the queue", test.name,
				s.rate/1e6, extra(s, 0.5, delay, test.rate), extra(s, 0.95, delay, test.rate), extra(s, 1, delay, test.rate), c.Lost, s.sent, c.Dropped)
			// Where the machine is too busy, the hosts' own queues drop some too.
			if c.Lost != 0 {
				t.Errorf("the line lost %d", c.Lost)
			}
			if uint64(s.received) > c.Passed || c.Passed+c.Dropped > uint64(s.sent) {
				t.Errorf("of %d packets the line dropped %d and passed %d, and %d arrived", s.sent, c.Dropped, c.Passed, s.received)
			}
		})
	}
}

// TestCalibrationLoss prints how many packets are lost, and expects what
// statistics allow: four standard deviations. The seed decides which.
func TestCalibrationLoss(t *testing.T) {
	for _, test := range []struct {
		name       string
		impairment Impairment
		want       float64
		runs       float64 // how many packets are lost together, on average
	}{
		{"0.1 % at random", Impairment{Loss: 0.001}, 0.001, 1},
		{"1 % at random", Impairment{Loss: 0.01}, 0.01, 1},
		{"5 % at random", Impairment{Loss: 0.05}, 0.05, 1},
		// Bad for 5 packets of 2,005, of which every second is lost.
		{"0.12 % in bursts", Impairment{BurstLoss: &Bursts{ToBad: 0.0005, ToGood: 0.2, Loss: 0.5}}, 0.5 * 5 / 2005, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, a, b := joined(t, test.impairment, Impairment{})
			s := send(t, a, b, 200, 60_000_000, time.Second)
			c := count(t, l)
			packets := float64(c.Passed + c.Lost)
			expected := packets * test.want
			deviation := math.Sqrt(expected * test.runs)
			row(t, "%s | – | – | %d of %.0f lost, expected %.0f ± %.0f", test.name, c.Lost, packets, expected, deviation)
			if math.Abs(float64(c.Lost)-expected) > 4*deviation {
				t.Errorf("lost %d, expected %.0f ± %.0f", c.Lost, expected, deviation)
			}
			if uint64(s.received) > c.Passed {
				t.Errorf("%d arrived of %d", s.received, c.Passed)
			}
		})
	}
}

func TestOutageAndChange(t *testing.T) {
	l, a, _ := joined(t, Impairment{}, Impairment{})
	ping := func(patience string) error { return a.Command("ping", "-c", "1", "-W", patience, bIP).Run() }
	if err := ping("10"); err != nil {
		t.Fatal(err)
	}
	if err := l.Change(Impairment{Outage: true}, Impairment{}); err != nil {
		t.Fatal(err)
	}
	if ping("1") == nil {
		t.Error("a ping passes in an outage")
	}
	if err := l.Change(Impairment{}, Impairment{}); err != nil {
		t.Fatal(err)
	}
	if err := ping("10"); err != nil {
		t.Errorf("after the outage: %v", err)
	}
}

func TestPathMTU(t *testing.T) {
	for _, test := range []struct {
		name   string
		noICMP bool
		wait   string // for an answer, which may be late where there is to be one
		want   string
	}{
		{"with ICMP", false, "10", "mtu = 1400"},
		{"a black hole", true, "1", "100% packet loss"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, a, _ := joined(t, Impairment{MTU: 1400, NoICMP: test.noICMP}, Impairment{})
			out, err := a.Command("ping", "-c", "1", "-W", test.wait, "-M", "do", "-s", "1400", bIP).CombinedOutput()
			if err == nil {
				t.Errorf("a packet of 1428 bytes passes:\n%s", out)
			}
			if !strings.Contains(string(out), test.want) {
				t.Errorf("no %q in\n%s", test.want, out)
			}
			if out, err := a.Command("ping", "-c", "1", "-W", "10", "-M", "do", "-s", "1372", bIP).CombinedOutput(); err != nil {
				t.Errorf("a packet of 1400 bytes: %v\n%s", err, out)
			}
			// A sender that lets routers cut its packets gets them through.
			if out, err := a.Command("ping", "-c", "1", "-W", "10", "-M", "dont", "-s", "3000", bIP).CombinedOutput(); err != nil {
				t.Errorf("in fragments: %v\n%s", err, out)
			}
		})
	}
}

func TestBadConfig(t *testing.T) {
	enter := func(f func() error) error { return errors.New("must not be entered") }
	_, err := New(Config{A: End{"a", enter}, B: End{"b", enter}, AtoB: Impairment{Loss: 1.5}})
	if err == nil || fmt.Sprint(err) != "loss is 1.5; it is a part, from 0 to 1" {
		t.Errorf("got %v", err)
	}
}
