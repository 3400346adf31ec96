package kernelns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/holder"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// ownerEnv makes the test binary a program that has a stack and waits to be
// killed.
const ownerEnv = "HOMEWARD_TEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) != "" {
		own()
	}
	if name := os.Getenv(environmentEnv); name != "" {
		enterEnvironment(name)
	}
	os.Exit(m.Run())
}

var testAddresses = []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd77::1/64")}

func newTestStack(t *testing.T) (*Stack, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	s, err := newStack(Config{Name: "wg0", MTU: 1420, Addresses: testAddresses, Logger: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, logs
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come true", what)
		}
	}
}

func holders(s *Stack) []int {
	n := s.place.Load().namespace
	n.mu.Lock()
	defer n.mu.Unlock()
	var pids []int
	for _, server := range n.servers {
		pids = append(pids, server.pid)
	}
	return pids
}

// loop connects the stack to itself, which needs nobody at its device.
func loop(t *testing.T, s *Stack) (dialed, accepted net.Conn) {
	t.Helper()
	return loopAt(t, s, netip.MustParseAddr("10.77.0.1"))
}

// loopAt is loop at one of the stack's addresses.
func loopAt(t *testing.T, s *Stack, address netip.Addr) (dialed, accepted net.Conn) {
	t.Helper()
	listener, err := s.ListenTCP(netip.AddrPortFrom(address, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := s.DialTCP(ctx, netip.AddrPort{}, listener.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	accepted, err = listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return conn, accepted
}

func exchange(t *testing.T, a, b net.Conn) {
	t.Helper()
	if _, err := a.Write([]byte("over here")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 9)
	b.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(b, buf); err != nil || string(buf) != "over here" {
		t.Fatalf("%q, %v", buf, err)
	}
}

// TestHolderReplaced kills one holder after the other: connections do not
// notice, and new ones can always be made.
func TestHolderReplaced(t *testing.T) {
	s, logs := newTestStack(t)
	dialed, accepted := loop(t, s)
	seen := map[int]bool{}
	for range 4 {
		pids := holders(s)
		if len(pids) != 2 {
			t.Fatalf("holders are %v, want two", pids)
		}
		seen[pids[0]], seen[pids[1]] = true, true
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a successor", func() bool {
			now := holders(s)
			return len(now) == 2 && now[0] != pids[0] && now[1] != pids[0]
		})
		exchange(t, dialed, accepted)
		for range 2 * blanksKept {
			loop(t, s)
		}
	}
	if len(seen) < 4 {
		t.Errorf("only %d holders were seen", len(seen))
	}
	if got := logs.FilterMessageSnippet("its partner starts another").Len(); got != 4 {
		t.Errorf("%d lines in the log, want 4", got)
	}
}

// loseNamespace kills both holders at once and waits for the stack's next
// namespace.
func loseNamespace(t *testing.T, s *Stack) {
	t.Helper()
	former := s.place.Load()
	loseHolders(t, s)
	eventually(t, "another namespace", func() bool { return s.place.Load() != former })
}

// loseHolders kills both holders at once.
func loseHolders(t *testing.T, s *Stack) {
	t.Helper()
	// Stopped ones cannot start a successor for each other in between.
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range holders(s) {
			if err := syscall.Kill(pid, signal); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// reach connects the stack to itself at address, as soon as that listens.
func reach(t *testing.T, s *Stack, address string) {
	t.Helper()
	eventually(t, "a dial to "+address, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn, err := s.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(address))
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

// TestNamespaceReplaced kills both holders at once: the stack goes on in
// another namespace, and what listens with it.
func TestNamespaceReplaced(t *testing.T) {
	s, logs := newTestStack(t)
	listener, err := s.ListenTCP(netip.MustParseAddrPort("[::]:8080"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	datagrams, err := s.ListenUDP(netip.MustParseAddrPort("[::]:8080"))
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	client, err := s.ListenUDP(netip.MustParseAddrPort("[::]:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dialed, _ := loop(t, s)

	// All wait from before to after.
	accepted, received := make(chan error, 1), make(chan error, 1000)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			conn.Close()
		}
		accepted <- err
	}()
	go func() {
		buf := make([]byte, 10)
		for {
			n, from, err := datagrams.ReadFrom(buf)
			if err == nil {
				_, err = datagrams.WriteTo(buf[:n], from)
			}
			received <- err
			if err != nil {
				return
			}
		}
	}()
	ended := make(chan error, 2)
	for _, read := range []func([]byte) (int, error){dialed.Read, client.Read} {
		go func() {
			_, err := read(make([]byte, 1))
			ended <- err
		}()
	}
	loseNamespace(t, s)
	for range 2 {
		// The connection's other end is here too, and its RST may be first.
		if err := <-ended; !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a connection of the old namespace, or a client's socket, ended with %v", err)
		}
	}
	reach(t, s, "10.77.0.1:8080")
	if err := <-accepted; err != nil {
		t.Errorf("accepting after the namespace was replaced: %v", err)
	}
	eventually(t, "the echo of a datagram", func() bool {
		conn, err := s.DialUDP(context.Background(), netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.1:8080"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 10)
		conn.Write([]byte("hello"))
		n, err := conn.Read(buf)
		return err == nil && string(buf[:n]) == "hello"
	})
	if err := <-received; err != nil {
		t.Errorf("receiving after the namespace was replaced: %v", err)
	}
	if logs.FilterMessageSnippet("have died at once").Len() == 0 {
		t.Error("nothing in the log")
	}
}

// TestNothingLeftBehind opens connections while another namespace is being made,
// which takes its time on a busy machine: until then they work, and then they end.
func TestNothingLeftBehind(t *testing.T) {
	s, logs := newTestStack(t)
	listener, err := s.ListenTCP(netip.MustParseAddrPort("[::]:8080"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	datagrams, err := s.ListenUDP(netip.MustParseAddrPort("[::]:8080"))
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dial := func() (tcp, udp net.Conn) {
		t.Helper()
		tcp, err := s.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.1:8080"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tcp.Close() })
		udp, err = s.DialUDP(ctx, netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.1:8080"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { udp.Close() })
		return tcp, udp
	}
	oldTCP, oldUDP := dial() // and there are some blank sockets from now on
	oldAccepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer oldAccepted.Close()

	former := s.place.Load()
	starting.Lock() // nobody starts a holder
	loseHolders(t, s)
	eventually(t, "the loss", func() bool { return logs.FilterMessageSnippet("have died at once").Len() > 0 })
	exchange(t, oldTCP, oldAccepted)
	tcp, udp := dial()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	exchange(t, tcp, accepted)
	// When there are no blank sockets left, a dial waits for the others.
	former.stocks.tcp4.mu.Lock()
	holder.CloseAll(former.stocks.tcp4.stock)
	former.stocks.tcp4.stock = nil
	former.stocks.tcp4.mu.Unlock()
	waited := make(chan error, 1)
	go func() {
		conn, err := s.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.1:8080"))
		if err == nil {
			conn.Close()
		}
		waited <- err
	}()
	select {
	case err := <-waited:
		t.Errorf("a dial did not wait for the new namespace: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	starting.Unlock()

	for name, conn := range map[string]net.Conn{
		"old TCP": oldTCP, "old UDP": oldUDP, "old accepted": oldAccepted, "TCP": tcp, "UDP": udp, "accepted": accepted,
	} {
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s, of the old namespace, ended with %v", name, err)
		}
	}
	// It may have been refused in the moment in which nobody listened yet.
	if err := <-waited; err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the dial that waited: %v", err)
	}
	reach(t, s, "10.77.0.1:8080")
}

// TestNothingLeft closes stacks and counts what is left of them.
func TestNothingLeft(t *testing.T) {
	goroutines := goleak.IgnoreCurrent()
	run := func() (pids []int) {
		s, err := newStack(Config{Name: "wg0", MTU: 1420, Addresses: testAddresses})
		if err != nil {
			t.Fatal(err)
		}
		pids = holders(s)
		listener, err := s.ListenTCP(netip.MustParseAddrPort("[::]:0"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		datagrams, err := s.ListenUDP(netip.MustParseAddrPort("[::]:8080"))
		if err != nil {
			t.Fatal(err)
		}
		defer datagrams.Close()
		for range 5 {
			conn, err := s.DialUDP(context.Background(), netip.MustParseAddrPort("203.0.113.5:0"), netip.MustParseAddrPort("10.77.0.2:9"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return pids
	}
	run() // what is opened once, such as Go's poller
	before := descriptors(t)
	for range 3 {
		for _, pid := range run() {
			eventually(t, "the end of holder "+strconv.Itoa(pid), func() bool { return gone(pid) })
		}
	}
	eventually(t, fmt.Sprintf("a return to %d descriptors", before), func() bool { return descriptors(t) == before })
	if err := testnet.FindLeaks(goroutines); err != nil {
		t.Error(err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// gone says whether a process has ended.
func gone(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// own is what the owner of TestOwnerKilled does.
func own() {
	s, err := newStack(Config{Name: "wg0", MTU: 1420, Addresses: testAddresses})
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	pids := holders(s)
	os.Stdout.WriteString(strconv.Itoa(pids[0]) + " " + strconv.Itoa(pids[1]) + "\n")
	select {}
}

// TestOwnerKilled kills the program that has the stack: its holders end.
func TestOwnerKilled(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), ownerEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// It was killed.
	_ = cmd.Wait()
	fields := strings.Fields(string(line[:n]))
	if len(fields) != 2 {
		t.Fatalf("the owner said %q", line[:n])
	}
	for _, field := range fields {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatalf("the owner said %q", line[:n])
		}
		eventually(t, "the end of holder "+field, func() bool { return gone(pid) })
	}
}

// TestHolderConfined looks at what the holders may do.
func TestHolderConfined(t *testing.T) {
	s, _ := newTestStack(t)
	if !s.place.Load().filtered {
		t.Error("no system-call filter is in force")
	}
	check := func(pid int) {
		t.Helper()
		process := filepath.Join("/proc", strconv.Itoa(pid))
		status, err := os.ReadFile(filepath.Join(process, "status"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("no %q in\n%s", want, status)
			}
		}
		if environ, err := os.ReadFile(filepath.Join(process, "environ")); err != nil || len(environ) > 0 {
			t.Errorf("environment is %q, %v", environ, err)
		}
		if sid, err := unix.Getsid(pid); err != nil || sid == mustSID(t) {
			t.Errorf("session is %d, %v", sid, err)
		}
	}
	for _, pid := range holders(s) {
		check(pid)
	}
	// A successor is no freer.
	pids := holders(s)
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a successor", func() bool {
		now := holders(s)
		return len(now) == 2 && now[0] != pids[0] && now[1] != pids[0]
	})
	for _, pid := range holders(s) {
		check(pid)
	}
}

func mustSID(t *testing.T) int {
	t.Helper()
	sid, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	return sid
}

// TestCongestionControl asks connections how they send.
func TestCongestionControl(t *testing.T) {
	s, logs := newTestStack(t)
	// To itself a stack speaks by way of the loopback, which has no such
	// route; a dial that is under way has its own.
	sending := func() string {
		t.Helper()
		p := s.place.Load()
		fd, err := p.stocks.tcp4.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		err = unix.Connect(fd, sockaddr(netip.MustParseAddrPort("10.77.0.2:80"), unix.AF_INET))
		if err != unix.EINPROGRESS {
			t.Fatal(err)
		}
		name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	available, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(available)) {
		if err := s.SetCongestionControl(name); err != nil {
			t.Fatal(err)
		}
		if got := sending(); got != name {
			t.Errorf("sends with %s, want %s", got, name)
		}
		if got := s.CongestionControl(); got != name {
			t.Errorf("says %s, want %s", got, name)
		}
	}
	if err := s.SetCongestionControl("nosuch"); err != nil {
		t.Fatal(err)
	}
	if logs.FilterMessageSnippet("modprobe tcp_nosuch").Len() != 1 {
		t.Errorf("log is %v", logs.All())
	}
	if got := sending(); got != lossBased[0] {
		t.Errorf("sends with %q, want %s", got, lossBased[0])
	}
	if got := s.CongestionControl(); got != lossBased[0] {
		t.Errorf("says %q, want %s", got, lossBased[0])
	}
	if used := logs.FilterMessageSnippet("modprobe tcp_nosuch").All()[0].ContextMap()["used"]; used != lossBased[0] {
		t.Errorf("the log says %q, want %s", used, lossBased[0])
	}
}

// TestECN reads what connections ask for, for each way to send: marks are for
// who answers to them.
func TestECN(t *testing.T) {
	s, _ := newTestStack(t)
	// The port tells a SYN from one that is sent again.
	port := uint16(1000)
	asks := func(remote netip.Addr) bool {
		t.Helper()
		port++
		to := netip.AddrPortFrom(remote, port)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _, _ = s.DialTCP(ctx, netip.AddrPort{}, to) }()
		bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
		for i := range bufs {
			bufs[i] = make([]byte, frameSize)
		}
		for {
			n, err := s.Device().Read(bufs, sizes, 0)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				tcp := bufs[i][20:sizes[i]]
				if remote.Is6() {
					tcp = bufs[i][40:sizes[i]]
				}
				const syn, ece, cwr = 0x02, 0x40, 0x80
				if len(tcp) < 20 || binary.BigEndian.Uint16(tcp[2:]) != port || tcp[13]&syn == 0 {
					continue
				}
				return tcp[13]&(ece|cwr) == ece|cwr
			}
		}
	}
	for _, tt := range []struct {
		name string
		want bool
	}{
		{"cubic", true},
		{"reno", true},
		{preferredCongestion, false},
		{"", s.CongestionControl() != preferredCongestion},
		{"nosuch", true}, // falls back to cubic
	} {
		if err := s.SetCongestionControl(tt.name); err != nil {
			t.Fatal(err)
		}
		if tt.name == preferredCongestion && s.CongestionControl() != preferredCongestion {
			continue // this kernel has none
		}
		for _, prefix := range testAddresses {
			if got := asks(prefix.Addr().Next()); got != tt.want {
				t.Errorf("with %q configured, a SYN of %v asks for ECN: %v, want %v", tt.name, prefix.Addr(), got, tt.want)
			}
		}
	}
}

// TestNearCongestion has connections that count as near and as far: only the
// automatic choice makes a difference.
func TestNearCongestion(t *testing.T) {
	defer func(before time.Duration) { nearby = before }(nearby)
	s, _ := newTestStack(t)
	if s.CongestionControl() != preferredCongestion {
		t.Skip("this kernel has no " + preferredCongestion)
	}
	algorithm := func(conn net.Conn) (name string) {
		raw, err := conn.(interface {
			SyscallConn() (syscall.RawConn, error)
		}).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if e := raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		return name
	}
	for _, tt := range []struct {
		configured string
		nearby     time.Duration
		isNear     bool
	}{
		{"", time.Minute, true},
		{"", 0, false},
		{preferredCongestion, time.Minute, false},
	} {
		nearby = tt.nearby
		if err := s.SetCongestionControl(tt.configured); err != nil {
			t.Fatal(err)
		}
		dialed, accepted := loop(t, s)
		for _, conn := range []net.Conn{dialed, accepted} {
			if got := algorithm(conn); slices.Contains(lossBased, got) != tt.isNear || !tt.isNear && got != preferredCongestion {
				t.Errorf("with %q configured, nearer than %s: it sends with %s", tt.configured, tt.nearby, got)
			}
		}
	}
}

// TestFailedChange changes the addresses in a way that fails half-way: nothing
// of it is left.
func TestFailedChange(t *testing.T) {
	s, _ := newTestStack(t)
	p := s.place.Load()
	added := netip.MustParsePrefix("10.78.0.1/24")
	// The addresses come before the routes, and no route can have this.
	next := s.wanted
	next.addresses = append(slices.Clone(next.addresses), added)
	next.congestion = "nosuch"
	s.mu.Lock()
	err := s.change(next)
	s.mu.Unlock()
	if err == nil {
		t.Fatal("the change was taken")
	}
	if netstack.HasAddress(p.addresses, added.Addr()) {
		t.Errorf("%v is still among %v", added, p.addresses)
	}
	if _, err := listenTCP(t.Context(), p, netip.AddrPortFrom(added.Addr(), 0)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("listening on the address: %v", err)
	}
	loop(t, s)
}
