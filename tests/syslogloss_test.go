package tests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

const (
	// syslogRate is how many messages a second come.
	syslogRate = 200

	// syslogLength is how long each is: a usual line of a log.
	syslogLength = 200
)

// TestSyslogLoss counts the messages that rsyslog sends and home never sees, or
// sees twice, while things happen that are neither's fault. Syslog over TCP has no
// acknowledgements of its own: of a connection that dies everything is lost that the
// client's program has given to its kernel and home has not got. It says how much of
// that was in the client's own kernel, and how much in the relay; nothing else may be
// lost. With HOMEWARD_LAB=1 home is away for a minute, and what plain DNAT does is
// measured beside it.
func TestSyslogLoss(t *testing.T) {
	outage, between := 5*time.Second, 2*time.Second
	relays := []syslogRelay{{name: "Homeward, kernel stack", stack: "kernel"}}
	faults := []syslogFault{relayKilledMeanwhile, homeWithoutPower}
	if os.Getenv("HOMEWARD_LAB") != "" {
		outage, between = time.Minute, 20*time.Second
		relays = append(relays,
			syslogRelay{name: "Homeward, gVisor stack", stack: "gvisor"},
			syslogRelay{name: "wireguard-go and nft DNAT"})
		faults = append(faults, lineDead, relayKilled)
	}
	for _, relay := range relays {
		for _, fault := range faults {
			t.Run(relay.name+"/"+fault.name, func(t *testing.T) {
				t.Parallel() // they mostly wait
				testSyslogLoss(t, relay, fault, outage, between)
			})
		}
	}
}

// syslogFault is something that happens. It returns where the bytes were when
// connections were cut, if they were.
type syslogFault struct {
	name    string
	inflict func(t *testing.T, s *syslogWorld, outage time.Duration) (cut syslogPlaces)
}

var (
	lineDead = syslogFault{name: "home's line dead", inflict: func(t *testing.T, s *syslogWorld, outage time.Duration) (none syslogPlaces) {
		s.Cut(t)
		s.log.pass(t, outage)
		s.Mend(t)
		s.over = time.Now()
		return none
	}}

	relayKilled = syslogFault{name: "relay killed and started again", inflict: func(t *testing.T, s *syslogWorld, _ time.Duration) syslogPlaces {
		cut := syslogPlacesIn(t, s.world)
		s.restart()
		s.over = time.Now()
		return cut
	}}

	relayKilledMeanwhile = syslogFault{name: "home's line dead, and the relay killed halfway", inflict: func(t *testing.T, s *syslogWorld, outage time.Duration) syslogPlaces {
		s.Cut(t)
		s.log.pass(t, outage/2)
		cut := syslogPlacesIn(t, s.world)
		s.restart()
		s.log.pass(t, outage/2)
		s.Mend(t)
		s.over = time.Now()
		return cut
	}}

	homeWithoutPower = syslogFault{name: "home without power", inflict: func(t *testing.T, s *syslogWorld, outage time.Duration) syslogPlaces {
		s.Cut(t)
		delivered := syslogPlacesIn(t, s.world).delivered
		s.server.Kill()
		s.log.pass(t, outage)
		s.server.Start(t)
		// From Mend on the client's connection may be cut at any time, and lives on
		// until TCP tries again.
		cut := syslogPlacesIn(t, s.world)
		cut.delivered = delivered
		s.Mend(t)
		s.over = time.Now()
		testnet.Eventually(t, syslogPatience, func() error {
			p := syslogPlacesIn(t, s.world)
			if p.delivered > 0 {
				return nil
			}
			if p.delivered = delivered; p.acknowledged >= cut.acknowledged {
				cut = p
			}
			return errors.New("home has no connection")
		})
		return cut
	}}
)

// syslogWorld is a world in which rsyslog sends.
type syslogWorld struct {
	*world
	server  *services.SyslogNG
	log     *syslogLog
	restart func()    // kills the relay and starts it again
	over    time.Time // when the fault was
}

// syslogRelay is a relay that is measured.
type syslogRelay struct {
	name  string
	stack string // empty if it is not Homeward
}

// start starts the relay and home's end of the tunnel. It returns what kills the
// relay with SIGKILL and starts it again.
func (r syslogRelay) start(t *testing.T, w *world) (restart func()) {
	t.Helper()
	if r.stack == "" {
		tun := testnet.NewTUNRelay(w.Relay, w.keys)
		tun.Up(t)
		w.Relay.ForwardHome(t, tun.Interface, []int{6514}, nil)
		w.home.Up(t)
		w.home.WaitHandshake(t)
		return func() {
			t.Helper()
			tun.Kill(t)
			tun.Up(t)
		}
	}
	w.relay.UseBinary(testnet.FastCaddy(t))
	caddyfile := w.portsOn(t, r.stack)
	w.start(t, caddyfile)
	testnet.Eventually(t, 20*time.Second, func() error {
		if found, _ := filepath.Glob(w.relay.Folder + "/storage/wireguard/*/endpoints.json"); len(found) == 0 {
			return errors.New("home's endpoint is not in the storage")
		}
		return nil
	})
	return func() {
		t.Helper()
		w.relay.Kill()
		w.relay.Start(t, caddyfile)
	}
}

func testSyslogLoss(t *testing.T, relay syslogRelay, fault syslogFault, outage, between time.Duration) {
	w := newWorld(t)
	s := &syslogWorld{world: w, server: services.StartSyslogNG(t, w.Home), restart: relay.start(t, w)}
	folder := testnet.Folder(t)
	spool := filepath.Join(folder, "spool")
	if err := os.Mkdir(spool, 0o755); err != nil {
		t.Fatal(err)
	}
	s.log = startSyslogLog(t, filepath.Join(folder, "input"), s.server)
	services.StartRsyslog(t, w.Client, s.server, services.Rsyslog{
		Host: testnet.Endpoint, Mode: "x509/name", Program: "loss", Input: s.log.path, Spool: spool,
	})

	length := s.log.steady(t, w, between)
	cut := fault.inflict(t, s, outage)
	spooled := folderSize(t, spool)
	s.log.resume(t)
	resumed := time.Since(s.over)
	s.log.stop()
	s.log.settle(t, w)

	lost, twice := s.log.count()
	taken := cut.taken()
	figure(t, "rsyslog with %d messages a second and a disk queue, through %s, %s: %d messages lost, %d duplicated. When connections were cut, the client's own kernel had %d KiB of theirs, %d messages, and the relay %d KiB, %d messages; rsyslog's disk queue had %d KiB afterwards; new messages arrived again %.1f s after the end.",
		syslogRate, relay.name, fault.name, lost, twice, cut.own>>10, cut.own/length, taken>>10, taken/length, spooled>>10, resumed.Seconds())
	if relay.stack == "" {
		return
	}
	most := (cut.own + taken) / syslogLength
	if cut != (syslogPlaces{}) {
		most += syslogRate // while they were counted
	}
	if lost > most {
		t.Errorf("%d messages are lost, and at most %d were on their way", lost, most)
	}
}

// syslogPlaces is where the bytes are that have been given to rsyslog's connections.
type syslogPlaces struct {
	own          int // in the client's kernel, not acknowledged
	acknowledged int // to the client
	delivered    int // to home's kernel
}

// taken is how many the relay has.
func (p syslogPlaces) taken() int { return max(p.acknowledged-p.delivered, 0) }

// syslogPlacesIn looks where they are. No connection may have been cut before.
func syslogPlacesIn(t *testing.T, w *world) (p syslogPlaces) {
	t.Helper()
	sum := func(host *testnet.Namespace, port, name string) (unsent, bytes int) {
		t.Helper()
		for line := range strings.Lines(host.Output(t, "ss", "-HOtin", "state", "established", port, "=", ":6514")) {
			var received, sent, n int
			if _, err := fmt.Sscan(line, &received, &sent); err != nil {
				t.Fatalf("ss: %q: %v", line, err)
			}
			if _, after, found := strings.Cut(line, " "+name+":"); found {
				if _, err := fmt.Sscan(after, &n); err != nil {
					t.Fatalf("ss: %q: %v", line, err)
				}
			}
			unsent, bytes = unsent+sent, bytes+n
		}
		return unsent, bytes
	}
	p.own, p.acknowledged = sum(w.Client, "dport", "bytes_acked")
	_, p.delivered = sum(w.Home, "sport", "bytes_received")
	return p
}

// folderSize is how many bytes the files of a folder have.
func folderSize(t *testing.T, folder string) (bytes int64) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil {
			bytes += info.Size()
		}
	}
	return bytes
}

// syslogLog is a log file that grows, and what of it has arrived at home.
type syslogLog struct {
	path string

	last    atomic.Int64 // the number of the newest message
	stopped chan struct{}
	ended   chan error

	messages *services.Messages
	arrived  map[int64]int // how often each has
}

// startSyslogLog begins to write messages: "1 xxx…", "2 xxx…", and so on.
func startSyslogLog(t *testing.T, path string, server *services.SyslogNG) *syslogLog {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	l := &syslogLog{
		path:     path,
		stopped:  make(chan struct{}),
		ended:    make(chan error, 1),
		messages: server.Follow("loss"),
		arrived:  make(map[int64]int),
	}
	go func() {
		defer file.Close()
		l.ended <- l.write(file)
	}()
	t.Cleanup(func() {
		l.stop()
		if err := <-l.ended; err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *syslogLog) write(file *os.File) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	begin := time.Now()
	for {
		select {
		case <-l.stopped:
			return nil
		case <-ticker.C:
		}
		due := int64(time.Since(begin).Seconds() * syslogRate)
		var lines strings.Builder
		for n := l.last.Load() + 1; n <= due; n++ {
			message := fmt.Sprint(n, " ")
			lines.WriteString(message + strings.Repeat("x", syslogLength-len(message)) + "\n")
		}
		if _, err := file.WriteString(lines.String()); err != nil {
			return err
		}
		l.last.Store(due)
	}
}

// stop ends the log. It may be called again.
func (l *syslogLog) stop() {
	select {
	case <-l.stopped:
	default:
		close(l.stopped)
	}
}

// written is the number of the newest message.
func (l *syslogLog) written() int64 { return l.last.Load() }

// collect takes notice of what has arrived.
func (l *syslogLog) collect(t *testing.T) {
	t.Helper()
	for _, message := range l.messages.Next(t) {
		var n int64
		if _, err := fmt.Sscan(message, &n); err != nil {
			t.Fatalf("message %q: %v", message, err)
		}
		l.arrived[n]++
	}
}

// syslogPatience is longer than a stock WireGuard at home takes to call a relay
// that has forgotten it, and than TCP tries.
const syslogPatience = 20 * time.Minute

// wait waits until a message has arrived.
func (l *syslogLog) wait(t *testing.T, n int64) {
	t.Helper()
	testnet.Eventually(t, syslogPatience, func() error {
		l.collect(t)
		if l.arrived[n] == 0 {
			return fmt.Errorf("message %d has not arrived", n)
		}
		return nil
	})
}

// resume waits until a message arrives that is written from now on. The first ones may
// be lost with a connection that does not know yet that it is over.
func (l *syslogLog) resume(t *testing.T) {
	t.Helper()
	first := l.written() + 1
	testnet.Eventually(t, syslogPatience, func() error {
		l.collect(t)
		for n := first; n <= l.written(); n++ {
			if l.arrived[n] > 0 {
				return nil
			}
		}
		return fmt.Errorf("no message from %d on has arrived", first)
	})
}

// pass waits until so much more has been written as is in a time.
func (l *syslogLog) pass(t *testing.T, d time.Duration) {
	t.Helper()
	until := l.written() + int64(d.Seconds()*syslogRate)
	testnet.Eventually(t, d+time.Minute, func() error {
		if l.written() < until {
			return fmt.Errorf("only %d messages have been written", l.written())
		}
		return nil
	})
}

// steady waits until all is well for a while, and returns how many bytes a message
// has on the way.
func (l *syslogLog) steady(t *testing.T, w *world, d time.Duration) (length int) {
	t.Helper()
	testnet.Eventually(t, syslogPatience, func() error {
		for n := int64(1); n <= l.written(); n++ {
			l.wait(t, n)
		}
		first, before := l.written(), syslogPlacesIn(t, w).acknowledged
		l.pass(t, d)
		length = (syslogPlacesIn(t, w).acknowledged - before) / int(l.written()-first)
		// It has a connection for what comes from its disk, and may still close that.
		if length < syslogLength {
			return errors.New("rsyslog goes over to another connection")
		}
		return nil
	})
	return length
}

// settle waits until nothing is on its way any more.
func (l *syslogLog) settle(t *testing.T, w *world) {
	t.Helper()
	const quiet = 5 * time.Second
	known, since := 0, time.Now()
	testnet.Eventually(t, syslogPatience, func() error {
		l.collect(t)
		if lost, _ := l.count(); lost == 0 {
			return nil
		}
		if len(l.arrived) > known || time.Since(since) > quiet && syslogPlacesIn(t, w).own > 0 {
			known, since = len(l.arrived), time.Now()
		}
		if time.Since(since) < quiet {
			return errors.New("something may still arrive")
		}
		return nil
	})
}

// count is how many messages have not arrived, and how many more than once.
func (l *syslogLog) count() (lost, twice int) {
	for n := int64(1); n <= l.written(); n++ {
		switch l.arrived[n] {
		case 0:
			lost++
		case 1:
		default:
			twice++
		}
	}
	return lost, twice
}
