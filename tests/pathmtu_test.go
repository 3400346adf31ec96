package tests

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestPathMTU finds the path MTU of real lines with `mtu auto`, where home is
// as people have it: wireguard-go with the customary MTU of 1420, whose packets
// are larger than some of these lines carry.
func TestPathMTU(t *testing.T) {
	t.Parallel() // they mostly wait
	endpoint6 := "[" + testnet.RelayIP6 + "]:51820"
	for _, test := range []struct {
		name     string
		line     int // MTU of the line to home
		noICMP   bool
		stack    string
		endpoint string // default: by IPv4
		path     int    // what has to be found
		mtu      int    // and made of it
	}{
		{"Ethernet", 1500, false, "auto", "", 1420, 1420},
		{"PPPoE", 1492, false, "auto", "", 1420, 1420},
		{"PPPoE, IPv6", 1492, false, "auto", endpoint6, 1412, 1408},
		// Home's answers of 1412 bytes are padded, and it is never told that
		// they do not pass.
		{"PPPoE, IPv6, no ICMP", 1492, true, "auto", endpoint6, 1408, 1408},
		{"DS-Lite", 1460, false, "auto", "", 1400, 1392},
		{"DS-Lite, no ICMP", 1460, true, "auto", "", 1392, 1392},
		{"DS-Lite, gVisor", 1460, false, "gvisor", "", 1400, 1392},
		{"DS-Lite, gVisor, no ICMP", 1460, true, "gvisor", "", 1392, 1392},
		{"DS-Lite over PPPoE, no ICMP", 1452, true, "auto", "", 1392, 1392},
		{"mobile, no ICMP", 1400, true, "auto", "", 1328, 1328},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const size, tries = 16 << 20, 3
			var w *world
			var found, mtu int
			// A size counts as too large that is not answered within 1.5 s, which on a
			// busy machine may be one that passes. It is not so each time.
			for try := 1; try <= tries && found < test.mtu; try++ {
				w = newWorld(t)
				w.narrow(t, test.line, test.noICMP)
				w.home = testnet.NewHome(t, w.Home, w.keys, testnet.HomeConfig{Endpoint: test.endpoint})
				services.Hasher(t, w.Home, ":7001", 2, size)
				begun := time.Now()
				w.start(t, replace(t, w.ports(t), "mtu 1280", "mtu auto\n		stack "+test.stack))
				var status tunnelStatus
				testnet.Eventually(t, 30*time.Second, func() error {
					status = w.status(t)
					found, mtu = status.Peers[0].PathMTU, status.MTU
					if found == 0 || found > 1280 && mtu == 1280 {
						return fmt.Errorf("path %d, MTU %d", found, mtu)
					}
					return nil
				})
				t.Logf("a line of %d, %s: path %d, MTU %d, after %s", test.line, status.Stack, found, mtu, time.Since(begun).Round(time.Millisecond))
				if found < test.mtu {
					figure(t, "mtu auto, %s: found a path of %d, where one of %d passes (try %d of %d).", test.name, found, test.mtu, try, tries)
				}
			}
			// Where home is told that its answer does not pass, it sends the
			// next one in fragments: whether that one comes soon enough to
			// count is a matter of chance.
			if found > test.path || found < test.mtu || test.noICMP && found != test.path || mtu != test.mtu {
				t.Errorf("found a path of %d and an MTU of %d, want %d and %d", found, mtu, test.path, test.mtu)
			}

			begun := time.Now()
			bulkTCP(t, w, size)
			t.Logf("%d MiB each way took %s", size>>20, time.Since(begun).Round(time.Millisecond))
			if count := w.counted(t, "fragment"); count != 0 {
				t.Errorf("the relay sent %d fragments", count)
			}
			if count := w.counted(t, "may_fragment"); count != 0 {
				t.Errorf("the relay sent %d packets without DF", count)
			}
			if w.counted(t, "whole") == 0 {
				t.Error("no packet of the tunnel was counted")
			}
		})
	}
}

// narrow gives the line to home an MTU, may keep routers from telling about
// it, and counts what the relay sends.
func (w *world) narrow(t *testing.T, mtu int, noICMP bool) {
	t.Helper()
	w.Router.IP(t, fmt.Sprintf("link set eth0 mtu %d", mtu))
	w.Core.IP(t, fmt.Sprintf("link set router mtu %d", mtu))
	if noICMP {
		for _, router := range []*testnet.Namespace{w.Core, w.Router} {
			router.NFT(t, `
table inet mute {
	chain output {
		type filter hook output priority filter
		icmp type destination-unreachable icmp code frag-needed drop
		icmpv6 type packet-too-big drop
	}
}`)
		}
	}
	// Before defragmentation, which a NAT may bring.
	w.Core.NFT(t, `
table inet watch {
	counter fragment {}
	counter may_fragment {}
	counter whole {}
	chain prerouting {
		type filter hook prerouting priority -450
		iifname != "relay" return
		ip frag-off & 0x3fff != 0 counter name fragment
		exthdr frag exists counter name fragment
		udp sport 51820 ip frag-off & 0x4000 == 0 counter name may_fragment
		udp sport 51820 counter name whole
	}
}`)
}

// counted reads a counter of narrow's.
func (w *world) counted(t *testing.T, name string) int {
	t.Helper()
	out := w.Core.Output(t, "nft", "list", "counter", "inet", "watch", name)
	match := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)
	if match == nil {
		t.Fatalf("no counter in %s", out)
	}
	count, err := strconv.Atoi(match[1])
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// tunnelStatus is what the test wants of the admin API's answer.
type tunnelStatus struct {
	Stack string `json:"stack"`
	MTU   int    `json:"mtu"`
	Peers []struct {
		Endpoint netip.AddrPort `json:"endpoint"`
		PathMTU  int            `json:"path_mtu"` // 0: not known
	} `json:"peers"`
}

func (w *world) status(t *testing.T) (status tunnelStatus) {
	t.Helper()
	if err := json.Unmarshal([]byte(w.relay.Admin(t, "/wireguard/wg0")), &status); err != nil {
		t.Fatal(err)
	}
	if len(status.Peers) != 1 {
		t.Fatalf("%d peers", len(status.Peers))
	}
	return status
}
