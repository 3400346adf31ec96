package kernelns

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

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
	stacktest.Run(t, func(config stacktest.Config) (netstack.Stack, error) {
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
func (s *Stack) sysctl(name, value string) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			namespace, err := os.Open(filepath.Join("/proc", strconv.Itoa(holders(s)[0]), "ns/net"))
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
	if !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), "net.ipv6.conf.all.disable_ipv6=0") {
		t.Errorf("error is %v", err)
	}
	dialed, accepted := loop(t, s)
	exchange(t, dialed, accepted)
	if err := s.SetAddresses([]netip.Prefix{testAddresses[0]}); err != nil {
		t.Error(err)
	}
}
