// Package stacktest has the tests that every netstack.Stack must pass. A
// stack's own test calls Run with a function that makes one:
//
//	func TestConformance(t *testing.T) {
//		stacktest.Run(t, func(config stacktest.Config) (netstack.Stack, error) {
//			return gvisor.New(gvisor.Config{Name: config.Name, MTU: config.MTU, Addresses: config.Addresses})
//		})
//	}
//
// Most tests run twice: over two stacks that are joined in memory, where every
// packet's size is checked, and over two real WireGuard devices that are
// joined by UDP over loopback.
package stacktest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// Config says what stack a test wants.
type Config struct {
	Name      string
	MTU       int
	Addresses []netip.Prefix
}

// New makes a stack, ready to be used.
type New func(config Config) (netstack.Stack, error)

// patience is how long a test waits for what must happen. It is long because
// the machine may be busy; nothing waits for it to pass.
const patience = 60 * time.Second

// mtu is that of the stacks in most tests.
const mtu = 1420

// The addresses of the two stacks, and one that neither has.
var (
	hereAddresses  = prefixes("10.77.0.1/24", "fd77::1/64")
	thereAddresses = prefixes("10.77.0.2/24", "fd77::2/64")
	nobody         = netip.MustParseAddr("10.77.0.99")
)

// family is one of the two address families.
type family struct {
	name        string
	here, there netip.Addr
	unspecified netip.Addr
	nobody      netip.Addr

	// client stands for an address on the internet, and fits a transparent
	// source.
	client netip.Addr
}

var families = []family{
	{
		name: "IPv4", here: netip.MustParseAddr("10.77.0.1"), there: netip.MustParseAddr("10.77.0.2"),
		unspecified: netip.IPv4Unspecified(), nobody: nobody, client: netip.MustParseAddr("203.0.113.77"),
	},
	{
		name: "IPv6", here: netip.MustParseAddr("fd77::1"), there: netip.MustParseAddr("fd77::2"),
		unspecified: netip.IPv6Unspecified(), nobody: netip.MustParseAddr("fd77::99"), client: netip.MustParseAddr("2001:db8::77"),
	},
}

// Run tests the stacks that newStack makes, as a user without any right: root
// runs the whole test again as nobody.
func Run(t *testing.T, newStack New) {
	if !asNobody(t) {
		RunAsIs(t, newStack)
	}
}

// RunAsIs is Run as whoever runs the test, for tests that need root for something else.
func RunAsIs(t *testing.T, newStack New) {
	joints := []struct {
		name string
		join joint
	}{
		{"memory", joinInMemory},
		{"wireguard", joinByWireGuard},
	}
	for _, joint := range joints {
		t.Run(joint.name, func(t *testing.T) {
			for _, f := range families {
				t.Run(f.name, func(t *testing.T) {
					for _, test := range pairTests {
						t.Run(test.name, func(t *testing.T) {
							test.run(t, newPair(t, newStack, joint.join), f)
						})
					}
				})
			}
			t.Run("dual stack", func(t *testing.T) { testDualStack(t, newPair(t, newStack, joint.join)) })
			t.Run("live MTU", func(t *testing.T) { testLiveMTU(t, newPair(t, newStack, joint.join)) })
			t.Run("many connections", func(t *testing.T) { testManyConnections(t, newPair(t, newStack, joint.join)) })
			t.Run("many busy connections", func(t *testing.T) { testBusyConnections(t, newPair(t, newStack, joint.join)) })
			t.Run("many dials at once", func(t *testing.T) { testParallelDials(t, newPair(t, newStack, joint.join)) })
		})
	}
	t.Run("alone", func(t *testing.T) {
		for _, test := range soloTests {
			t.Run(test.name, func(t *testing.T) {
				checkLeaks(t)
				test.run(t, newStack)
			})
		}
	})
}

// pairTests are those that need two stacks and run for each family.
var pairTests = []struct {
	name string
	run  func(t *testing.T, p *pair, f family)
}{
	{"TCP echo", testTCPEcho},
	{"TCP bulk", testTCPBulk},
	{"TCP half-close", testTCPHalfClose},
	{"TCP close read", testTCPCloseRead},
	{"TCP refused", testTCPRefused},
	{"TCP dial ends with its context", testTCPDialContext},
	{"TCP deadlines", testTCPDeadlines},
	{"TCP close wakes", testTCPCloseWakes},
	{"TCP linger 0 resets", testTCPLinger},
	{"TCP unread data resets", testTCPUnreadReset},
	{"TCP write after peer closed", testTCPBrokenPipe},
	{"TCP keepalive", testTCPKeepAlive},
	{"TCP user timeout", testTCPUserTimeout},
	{"TCP traffic", testTCPTraffic},
	{"TCP busy port", testTCPBusyPort},
	{"TCP source of a client", testTCPTransparent},
	{"TCP source clash", testTCPTransparentClash},
	{"TCP large writes", testTCPLargeWrites},
	{"UDP echo", testUDPEcho},
	{"UDP unconnected", testUDPUnconnected},
	{"UDP sizes", testUDPSizes},
	{"UDP refused", testUDPRefused},
	{"UDP deadlines", testUDPDeadlines},
	{"UDP close wakes", testUDPCloseWakes},
	{"UDP busy port", testUDPBusyPort},
	{"UDP source of a client", testUDPTransparent},
	{"UDP flood is not lost by the sender", testUDPFlood},
	{"live addresses", testLiveAddresses},
	{"ping of the peer", testPingPeer},
}

// soloTests are those with one stack, whose packets the test itself writes and
// reads.
var soloTests = []struct {
	name string
	run  func(t *testing.T, newStack New)
}{
	{"bad configuration", testBadConfig},
	{"bad arguments", testBadArguments},
	{"no address of the family", testNoAddress},
	{"device", testDevice},
	{"close", testClose},
	{"close by device", testCloseByDevice},
	{"close of an unread device", testCloseUnread},
	{"close under load", testCloseUnderLoad},
	{"write does not wait for read", testWriteDoesNotWait},
	{"dial on an unread device", testDialUnread},
	{"bad packets", testBadPackets},
	{"ping", testPing},
	{"isolation", testIsolation},
	{"MSS follows MTU", testMSS},
	{"unreachable", testUnreachable},
	{"ping's packets", testPingPackets},
	{"ping's end", testPingEnd},
	{"ping's bad arguments", testPingArguments},
}

// pair is two stacks that are joined.
type pair struct {
	here, there netstack.Stack
	// limit is the size that packets of both may have; 0 stops checking.
	limit *sizeLimit
}

// newPair makes two stacks, joins them, and takes them apart at the end of the
// test, when nothing of them may be left.
func newPair(t *testing.T, newStack New, join joint) *pair {
	t.Helper()
	checkLeaks(t)
	p := &pair{
		here:  newStackFor(t, newStack, Config{Name: "here", MTU: mtu, Addresses: hereAddresses}),
		there: newStackFor(t, newStack, Config{Name: "there", MTU: mtu, Addresses: thereAddresses}),
		limit: newSizeLimit(mtu),
	}
	join(t, p)
	return p
}

// newStackFor makes a stack that is closed with the test.
func newStackFor(t *testing.T, newStack New, config Config) netstack.Stack {
	t.Helper()
	stack, err := newStack(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Errorf("closing stack: %v", err)
		}
	})
	return stack
}

// checkLeaks fails the test if goroutines are left when it and all cleanups
// after this call are done.
func checkLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if err := testnet.FindLeaks(before); err != nil {
			t.Error(err)
		}
	})
}

// within returns a context for what must happen soon.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func prefixes(all ...string) []netip.Prefix {
	var parsed []netip.Prefix
	for _, s := range all {
		parsed = append(parsed, netip.MustParsePrefix(s))
	}
	return parsed
}
