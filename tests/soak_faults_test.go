package tests

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/tests/lab/line"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// soakFault is something that goes wrong. begin has it happen, and returns what
// ends it: nil if nothing has to.
type soakFault struct {
	name    string
	touches string // words: only one fault at a time touches a thing
	harms   []harm
	begin   func() (mend func())

	// least and most are how long it lasts: half the least without the lab.
	least, most time.Duration
}

// clashes tells whether two faults cannot be there at the same time.
func (f soakFault) clashes(other soakFault) bool {
	return slices.ContainsFunc(strings.Fields(f.touches), func(thing string) bool {
		return slices.Contains(strings.Fields(other.touches), thing)
	})
}

// What faults may do.
var (
	unnoticed []harm
	away      = []harm{{"home", false}, {"cabin", false}}
	awayHome  = []harm{{"home", false}}
	awayCabin = []harm{{"cabin", false}}
	cut       = []harm{{"home", true}, {"cabin", true}}
	cutCabin  = []harm{{"cabin", true}}
)

// faults are all kinds.
func (s *soak) faults() []soakFault {
	const second = time.Second
	var faults []soakFault
	if s.full { // it takes long until the new address is asked for
		faults = append(faults, s.relayMoves(),
			soakFault{"relay elsewhere, no names at the cabin", "relay home names", cut, s.moveUnnamed, 2 * second, 10 * second})
	}
	faults = append(faults, []soakFault{
		{"cabin: refused reload", "cabin", unnoticed, s.refusedByCabin, 0, 0},
		{"cabin: reload", "cabin", unnoticed, s.reloadCabin, 0, 3 * second},
		{"reload: a peer", "relay", unnoticed, s.reloadPeer, 0, 3 * second},
		{"reload: a service", "relay", unnoticed, s.reloadService, 0, 3 * second},
		{"reload: a site", "relay", unnoticed, s.reloadSite, 0, 3 * second},
		{"reload: the MTU", "relay", unnoticed, s.reloadMTU, second, 3 * second},

		// Before what makes handshakes with them.
		{"preshared key of home changed", "relay home", unnoticed, s.changeHomeKey, 0, 0},
		{"preshared key of cabin changed", "relay cabin", unnoticed, s.changeCabinKey, 0, 0},

		{"cabin killed", "cabin", cutCabin, func() func() { return s.restart(s.cabin, s.cabinBinary, &s.cabinText, (*testnet.Process).Kill) }, 0, 3 * second},
		{"cabin stopped", "cabin", cutCabin, func() func() { return s.restart(s.cabin, s.cabinBinary, &s.cabinText, (*testnet.Process).Stop) }, 0, 3 * second},
		{"cabin restarted without names", "cabin names", cutCabin, s.restartUnnamed, second, 10 * second},
		{"cabin reloaded without names", "cabin names", unnoticed, s.reloadUnnamed, 0, 10 * second},
		{"wireguard-go killed", "home", awayHome, s.restartHome, 0, 3 * second},

		{"relay suspended", "relay", away, func() func() { return s.suspend(s.relay.PID) }, second, 10 * second},
		{"cabin suspended", "cabin", awayCabin, func() func() { return s.suspend(s.cabin.PID) }, second, 10 * second},
		{"wireguard-go suspended", "home", awayHome, func() func() { return s.suspend(s.home.Process().PID) }, second, 10 * second},

		{"NAT forgets", "router", away, func() func() { return s.reconnect(false) }, 0, 0},
		{"homes elsewhere", "router", away, func() func() { return s.reconnect(true) }, 0, 0},
		{"outage", "line", away, func() func() { return s.impair(line.Impairment{Outage: true}) }, second, 20 * second},
		{"loss", "line", away, func() func() { return s.impair(line.Impairment{Loss: 0.05 + 0.35*s.random.Float64()}) }, second, 10 * second},
		{"bursts of loss, disorder", "line", away, func() func() {
			return s.impair(line.Impairment{
				BurstLoss: &line.Bursts{ToBad: 0.01, ToGood: 0.05, Loss: 0.9},
				Reorder:   0.05, ReorderDelay: line.Duration(3 * time.Millisecond), Duplicate: 0.05,
			})
		}, second, 10 * second},
		{"narrow path", "line", away, s.narrowPath, second, 15 * second},
		{"loss at the client", "client", away, s.loseAtClient, second, 10 * second},

		// Not among the first: where homes are is stored every ten seconds at most.
		{"relay stopped", "relay", cut, func() func() { return s.restart(s.relay, s.relayBinary, &s.relayText, (*testnet.Process).Stop) }, 0, 3 * second},
		{"relay killed", "relay", cut, func() func() { return s.restart(s.relay, s.relayBinary, &s.relayText, (*testnet.Process).Kill) }, 0, 3 * second},
	}...)
	for _, m := range s.mistakes() {
		faults = append(faults, soakFault{"refused reload: " + m.name, "relay", unnoticed, func() func() { return s.refused(m) }, 0, 0})
	}
	if len(holdersOf(s.t, s.relayBinary)) == 0 {
		s.t.Log("left out: the holders, since this host does not have the kernel's stack")
		return faults
	}
	for _, end := range []struct {
		name      string
		relay     *testnet.Relay
		binary    string
		away, cut []harm
	}{{"relay", s.relay, s.relayBinary, away, cut}, {"cabin", s.cabin, s.cabinBinary, awayCabin, cutCabin}} {
		faults = append(faults,
			soakFault{end.name + "'s holder killed", end.name, unnoticed, func() func() { return s.killHolder(end.binary) }, 0, 0},
			soakFault{end.name + "'s holders killed", end.name, end.cut, func() func() { return s.killHolders(end.relay, end.binary) }, 0, 0},
			soakFault{end.name + "'s holder suspended", end.name, unnoticed, func() func() { return s.suspend(holdersOf(s.t, end.binary)[s.random.IntN(2)]) }, second, 10 * second},
			soakFault{end.name + "'s holders suspended", end.name, end.away, func() func() { return s.suspend(holdersOf(s.t, end.binary)...) }, second, 10 * second},
		)
	}
	return faults
}

// restart ends the process of a relay, or of the cabin, and starts it again. What
// it has started must end with it.
func (s *soak) restart(r *testnet.Relay, binary string, text *string, end func(*testnet.Process)) (mend func()) {
	former := processesOf(s.t, binary)
	end(r.Process)
	return func() {
		r.Start(s.t, *text)
		testnet.Eventually(s.t, time.Minute, func() error {
			left := processesOf(s.t, binary)
			if left = slices.DeleteFunc(left, func(pid int) bool { return !slices.Contains(former, pid) }); len(left) > 0 {
				return fmt.Errorf("processes of one that has ended are left: %v", left)
			}
			return nil
		})
	}
}

func (s *soak) restartHome() (mend func()) {
	s.home.Down(s.t)
	return func() { s.home.Up(s.t) }
}

// suspend stops processes, as a machine does that has too much to do, or sleeps.
func (s *soak) suspend(pids ...int) (mend func()) {
	signal := func(signal syscall.Signal) {
		for _, pid := range pids {
			if err := unix.Kill(pid, signal); err != nil {
				s.t.Errorf("%v to process %d: %v", signal, pid, err)
			}
		}
	}
	signal(unix.SIGSTOP)
	return func() { signal(unix.SIGCONT) }
}

// killHolder kills one of the processes that hold a network namespace. The other has
// to start a successor.
func (s *soak) killHolder(binary string) (mend func()) {
	victim := holdersOf(s.t, binary)[s.random.IntN(2)]
	if err := unix.Kill(victim, unix.SIGKILL); err != nil {
		s.t.Errorf("killing a holder: %v", err)
	}
	return func() { s.awaitHolders(binary, victim) }
}

// killHolders kills both, so that another namespace has to be made.
func (s *soak) killHolders(r *testnet.Relay, binary string) (mend func()) {
	mark := r.Log.Len()
	victims := holdersOf(s.t, binary)
	// Stopped ones cannot start a successor for each other in between.
	for _, signal := range []syscall.Signal{unix.SIGSTOP, unix.SIGKILL} {
		for _, pid := range victims {
			if err := unix.Kill(pid, signal); err != nil {
				s.t.Errorf("killing a holder: %v", err)
			}
		}
	}
	return func() {
		r.WaitLog(s.t, mark, "the tunnel has another network namespace", time.Minute)
		s.awaitHolders(binary, victims...)
	}
}

// awaitHolders waits until there are two holders again, and none of the former.
func (s *soak) awaitHolders(binary string, former ...int) {
	s.t.Helper()
	testnet.Eventually(s.t, time.Minute, func() error {
		now := holdersOf(s.t, binary)
		if len(now) != 2 || slices.ContainsFunc(former, func(pid int) bool { return slices.Contains(now, pid) }) {
			return fmt.Errorf("holders are %v, were %v", now, former)
		}
		return nil
	})
}

func (s *soak) reconnect(newAddress bool) (mend func()) {
	if err := s.Reconnect(newAddress); err != nil {
		s.t.Fatal(err)
	}
	return nil
}

// impair makes the line a bad one, both ways.
func (s *soak) impair(bad line.Impairment) (mend func()) {
	bad.Rate, bad.Delay, bad.Jitter = s.good.Rate, s.good.Delay, s.good.Jitter
	change := func(to line.Impairment) {
		if err := s.line.Change(to, to); err != nil {
			s.t.Fatal(err)
		}
	}
	change(bad)
	return func() { change(s.good) }
}

// narrowPath has the line carry only packets of DS-Lite's or a mobile network's
// size, and maybe not say so. What home's kernel has heard of that, it forgets with
// it, and not after its ten minutes: until then it refuses the batches of
// wireguard-go and takes single packets, so that home's TCP loses a third of what it
// sends, and nothing at the relay can help.
func (s *soak) narrowPath() (mend func()) {
	sizes := []int{1492, 1460, 1400}
	widen := s.impair(line.Impairment{MTU: sizes[s.random.IntN(len(sizes))], NoICMP: s.random.IntN(2) == 0})
	return func() {
		widen()
		s.Home.IP(s.t, "route flush cache")
	}
}

// loseAtClient has the client's own line lose packets.
func (s *soak) loseAtClient() (mend func()) {
	s.Core.NFT(s.t, fmt.Sprintf(`
table inet soak {
	chain forward {
		type filter hook forward priority 0
		iifname "client" numgen random mod 100 < %[1]d drop
		oifname "client" numgen random mod 100 < %[1]d drop
	}
}`, 5+s.random.IntN(20)))
	return func() { s.Core.NFT(s.t, "delete table inet soak") }
}

// relayMoves gives the VM another address, and the name with it. What is open to
// the former one ends, at the clients.
func (s *soak) relayMoves() soakFault {
	return soakFault{"relay elsewhere", "relay home names", cut, func() func() {
		s.move()
		s.Home.SetHosts(s.t, s.names())
		return nil
	}, 0, 0}
}

// newRelayIP is the other address of the VM.
const newRelayIP = "203.0.113.6"

func (s *soak) names() map[string]string {
	return map[string]string{testnet.Domain: s.relayIP, testnet.Subdomain: s.relayIP, testnet.Endpoint: s.relayIP}
}

// move changes the VM's address, and tells everybody but our binary at home, which
// has to find out.
func (s *soak) move() {
	former := s.relayIP
	if s.relayIP = newRelayIP; former == newRelayIP {
		s.relayIP = testnet.RelayIP
	}
	s.Relay.IP(s.t, "addr del "+former+"/24 dev eth0", "addr add "+s.relayIP+"/24 dev eth0", "route replace default via 203.0.113.1")
	s.Client.SetHosts(s.t, s.names())
	s.load.drop(func(*soakConn) bool { return true })
	// As wireguard-tools' reresolve-dns.sh does.
	s.home.SetEndpoint(s.t, s.relayIP+":51820")
}

func (s *soak) moveUnnamed() (mend func()) {
	s.loseNames()
	s.move()
	return func() { s.Home.SetHosts(s.t, s.names()) }
}

// loseNames takes the names from the cabin.
func (s *soak) loseNames() {
	server := "127.0.0.1" // nobody is there, which is known at once
	if s.full && s.random.IntN(2) == 0 {
		server = "203.0.113.99" // nor there, which takes time
	}
	s.Home.LoseNames(s.t, server)
}

func (s *soak) restartUnnamed() (mend func()) {
	s.loseNames()
	s.restart(s.cabin, s.cabinBinary, &s.cabinText, (*testnet.Process).Kill)()
	return func() { s.Home.SetHosts(s.t, nil) }
}

func (s *soak) reloadUnnamed() (mend func()) {
	s.loseNames()
	mendReload := s.reloadCabin()
	if s.alone {
		s.awaitServed(time.Now())
	}
	return func() {
		mendReload()
		s.Home.SetHosts(s.t, nil)
	}
}
