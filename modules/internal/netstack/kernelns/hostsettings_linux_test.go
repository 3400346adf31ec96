package kernelns

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/stacktest"
)

// settingsEnv makes TestHostSettings run the suite.
const settingsEnv = "HOMEWARD_TEST_SETTINGS"

// hostSettings are what machines with containers, routers and hardened hosts
// have, and what a new network namespace may inherit
// (net.core.devconf_inherit_init_net).
var hostSettings = map[string]string{
	"ipv4/ip_forward":       "1",
	"ipv4/ip_nonlocal_bind": "1",
	"ipv6/ip_nonlocal_bind": "1",

	"ipv4/conf/*/forwarding":          "1",
	"ipv4/conf/*/rp_filter":           "1",
	"ipv4/conf/*/route_localnet":      "1",
	"ipv4/conf/*/accept_local":        "1",
	"ipv4/conf/*/accept_source_route": "1",
	"ipv4/conf/*/accept_redirects":    "1",
	"ipv4/conf/*/proxy_arp":           "1",
	"ipv4/conf/*/src_valid_mark":      "1",
	"ipv6/conf/*/forwarding":          "1",
	"ipv6/conf/*/accept_source_route": "1",
	"ipv6/conf/*/accept_redirects":    "1",
	"ipv6/conf/*/accept_ra":           "2",
}

// TestHostSettings runs the suite with such settings in the stacks'
// namespaces: what a peer can reach is up to no sysctl.
func TestHostSettings(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("left out: needs root to enter the stacks' namespaces")
	}
	if os.Getenv(settingsEnv) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestHostSettings$/^(memory|alone)$/^(IPv4|IPv6|isolation|bad packets|ping|MSS|unreachable)$", "-test.short", "-test.v")
		cmd.Env = append(os.Environ(), settingsEnv+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		// Names may change, and a pattern that matches nothing passes.
		for _, name := range []string{"alone/isolation", "memory/IPv4/TCP_echo", "memory/IPv6/TCP_echo"} {
			if !strings.Contains(string(out), "--- PASS: TestHostSettings/"+name) {
				t.Errorf("there is no test %s in\n%s", name, out)
			}
		}
		return
	}
	stacktest.RunAsIs(t, func(config stacktest.Config) (netstack.Stack, error) {
		s, err := newStack(Config{Name: config.Name, MTU: config.MTU, Addresses: config.Addresses})
		if err != nil {
			return nil, err
		}
		for name, value := range hostSettings {
			for _, device := range []string{"all", "default", "lo", deviceName} {
				if err := s.sysctl(strings.ReplaceAll(name, "*", device), value); err != nil {
					return nil, errors.Join(err, s.Close())
				}
			}
		}
		return s, nil
	})
}

// sysctl sets a sysctl below net in the stack's namespace.
func (s *Stack) sysctl(name, value string) error { return s.place.Load().sysctl(name, value) }

func (n *namespace) sysctl(name, value string) error {
	n.mu.Lock()
	pid := n.servers[0].pid
	n.mu.Unlock()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			namespace, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/net"))
			if err != nil {
				return err
			}
			defer namespace.Close()
			if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
				return os.NewSyscallError("setns", err)
			}
			return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
		}()
	}()
	return <-done
}

// TestIPv6Off has a namespace without IPv6, whose sysctls may not be written:
// the error says what to do, and IPv4 goes on.
func TestIPv6Off(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("left out: needs root to enter the stack's namespace")
	}
	s, err := newStack(Config{Name: "wg0", MTU: 1420, Addresses: testAddresses[:1]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.sysctl("ipv6/conf/"+deviceName+"/disable_ipv6", "1"); err != nil {
		t.Fatal(err)
	}
	err = s.SetAddresses(testAddresses)
	if !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), "give the tunnel no IPv6 address") {
		t.Errorf("error is %v", err)
	}
	dialed, accepted := loop(t, s)
	exchange(t, dialed, accepted)
	if err := s.SetAddresses([]netip.Prefix{testAddresses[0]}); err != nil {
		t.Error(err)
	}
}

// TestIPv6OffBefore is the same for a namespace that begins so: a tunnel without IPv6 does
// not need it.
func TestIPv6OffBefore(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("left out: needs root to enter the namespace")
	}
	place := func(addresses []netip.Prefix) (*place, error) {
		n, err := newNamespace(zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"all", "default", "lo", deviceName} {
			if err := n.sysctl("ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
				t.Fatal(err)
			}
		}
		return settle(n, wanted{mtu: 1420, addresses: addresses})
	}
	p, err := place(testAddresses[:1])
	if err != nil {
		t.Fatal(err)
	}
	defer p.tun.Close()
	defer p.close()
	for _, local := range []string{"[::]:0", "10.77.0.1:0"} {
		listener, err := listenTCP(t.Context(), p, netip.MustParseAddrPort(local))
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
	}
	if _, err := place(testAddresses); !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), "give the tunnel no IPv6 address") {
		t.Errorf("error is %v", err)
	}
}

// TestRouterAdvertisement has a peer that would be the namespace's router.
func TestRouterAdvertisement(t *testing.T) {
	s, _ := newTestStack(t)
	router, own, peer := netip.MustParseAddr("fe80::1"), testAddresses[1].Addr(), testAddresses[1].Addr().Next()
	for _, to := range []netip.Addr{own, netip.MustParseAddr("ff02::1")} {
		advertisement := make([]byte, 16)
		advertisement[0], advertisement[4] = 134, 7 // its type; the hop limit
		binary.BigEndian.PutUint16(advertisement[6:], 1800)
		exchangeICMPv6(t, s, router, to, advertisement, nil)
	}
	// The answer to a ping says that what came before it has been dealt with, and with
	// which hop limit.
	limit := 0
	exchangeICMPv6(t, s, peer, own, []byte{128, 0, 0, 0, 0, 1, 0, 1}, func(packet []byte) bool {
		limit = int(packet[7])
		return packet[6] == unix.IPPROTO_ICMPV6 && packet[40] == 129
	})
	if limit == 7 {
		t.Error("it has taken the router's hop limit")
	}
	routes, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(holders(s)[0]), "net/ipv6_route"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(routes), deviceName) {
		t.Errorf("these are no routes of the namespace:\n%s", routes)
	}
	if strings.Contains(string(routes), "fe800000000000000000000000000001") {
		t.Errorf("it has taken the router's route:\n%s", routes)
	}
}

// exchangeICMPv6 sends a message to the stack as its peer, and with match waits for the
// packet that answers.
func exchangeICMPv6(t *testing.T, s *Stack, from, to netip.Addr, message []byte, match func(packet []byte) bool) {
	t.Helper()
	header := make([]byte, 40)
	header[0], header[6], header[7] = 6<<4, unix.IPPROTO_ICMPV6, 255
	binary.BigEndian.PutUint16(header[4:], uint16(len(message)))
	copy(header[8:], from.AsSlice())
	copy(header[24:], to.AsSlice())
	summed := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 0, 0, byte(len(message)), 0, 0, 0, unix.IPPROTO_ICMPV6}, message)
	var sum uint32
	for i := 0; i < len(summed); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(summed[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(message[2:], ^uint16(sum))
	if _, err := s.Device().Write([][]byte{slices.Concat(header, message)}, 0); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, frameSize)
	}
	for match != nil {
		n, err := s.Device().Read(bufs, sizes, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if bufs[i][0]>>4 == 6 && match(bufs[i][:sizes[i]]) {
				return
			}
		}
	}
}
