package tests

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/lab/line"
	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// soakHome is one of the homes of a soak, as clients know it.
type soakHome struct {
	name                       string // the peer's
	echo, transfers, datagrams string // the relay's ports
	site                       string
}

// soakHomes are the homes' ports and sites.
var soakHomes = []soakHome{
	{"home", "7000", "7001", "19132", testnet.Domain},
	{"cabin", "7100", "7101", "19133", testnet.Subdomain},
}

const cabinTunnelIP = "10.77.0.3"

func newSoak(t *testing.T, seed uint64, full bool) *soak {
	t.Helper()
	s := &soak{t: t, full: full, seed: seed, random: rand.New(rand.NewPCG(seed, 0)), relayIP: testnet.RelayIP, recovered: make(map[string][]recovery), beside: make(map[string]int)}
	t.Logf("the seed is %d", seed)
	if full {
		s.good = line.Impairment{Rate: 50e6, Delay: line.Duration(8 * time.Millisecond), Jitter: line.Duration(2 * time.Millisecond)}
	}
	internet := testnet.NewInternetOver(t, s.layLine)
	keys := testnet.NewTunnelKeys(t)
	keys.Preshared = testnet.NewPresharedKey(t)
	s.world = newWorldIn(t, internet, keys)
	s.cabinKeys = testnet.TunnelKeys{Relay: keys.Relay, Home: testnet.NewKey(t), Preshared: testnet.NewPresharedKey(t)}

	// Files of their own, so that their processes can be told from others'.
	folder := testnet.Folder(t)
	s.relayBinary, s.cabinBinary = filepath.Join(folder, "relay"), filepath.Join(folder, "cabin")
	testnet.Run(t, "cp", testnet.FastCaddy(t), s.relayBinary)
	if err := os.Link(s.relayBinary, s.cabinBinary); err != nil {
		t.Fatal(err)
	}
	s.relay.UseBinary(s.relayBinary)
	s.cabin = testnet.NewRelay(t, s.Home)
	s.cabin.UseBinary(s.cabinBinary)

	apache := services.StartApache(t, s.Home, s.private)
	services.WebSocketEcho(t, s.Home, "127.0.0.1:8081")
	services.Echo(t, s.Home, ":7000", ":19132")
	var load *workload
	services.Transfers(t, s.Home, ":7001", func(client net.Addr, transfer services.Transfer, err error) { load.served(client, transfer, err) })
	load = newWorkload(t, s.world, soakHomes)
	s.load = load
	for _, home := range soakHomes {
		page := make([]byte, 200<<10)
		services.NewStream(byte(len(home.site)), int64(len(page))).Read(page)
		load.pages[home.site+"/"] = []byte("this is " + home.site + "\n")
		load.pages[home.site+"/soak"] = page
		testnet.WriteFile(t, filepath.Join(apache.Folder, home.site, "soak"), page, 0o644)
	}

	// At the customary 25 s a change at the router takes longer than CI has time.
	keepalive := 1
	if full {
		keepalive = 25
	}
	s.home = testnet.NewHome(t, s.Home, keys, testnet.HomeConfig{Keepalive: keepalive})
	s.relayText, s.cabinText = s.relayCaddyfile(), s.cabinCaddyfile(keepalive)
	s.Relay.Sysctl(t, "net.ipv4.tcp_migrate_req", "1") // see TestReload
	s.world.start(t, s.relayText)
	s.cabin.Start(t, s.cabinText)

	t.Cleanup(load.end) // before what it talks to, should the rest of this fail

	transfers, flows := 1, 3
	load.rate, load.sizes = 500<<10, [2]int64{64 << 10, 1 << 20}
	if full {
		transfers, flows = 3, 10
		load.rate, load.sizes = 512<<10, [2]int64{64 << 10, 20 << 20}
	}
	load.open(flows)
	s.awaitServed(time.Now())
	load.paused.Store(true)
	s.before, s.heap = settle(t, s.relay), heapInUse(s.t, s.relay)
	load.paused.Store(false)
	load.start(transfers, s.random)
	return s
}

// layLine lays the line between the router and the core.
func (s *soak) layLine(t testing.TB, router *testnet.Namespace, eth string, core *testnet.Namespace, name string) {
	t.Helper()
	var err error
	s.line, err = line.New(line.Config{
		A:    line.End{Name: name, Enter: core.Do},
		B:    line.End{Name: eth, Enter: router.Do},
		AtoB: s.good,
		BtoA: s.good,
		Seed: s.seed,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.line.Close(); err != nil {
			t.Error(err)
		}
	})
}

// relayCaddyfile is the example's relay with a second home and the services that
// the soak needs.
func (s *soak) relayCaddyfile() string {
	s.relay.Secret(s.t, "cabin.psk", s.cabinKeys.Preshared)
	text := s.example(s.t)
	text = replace(s.t, text, "			allowed_ips 10.77.0.2/32\n		}\n", fmt.Sprintf(`			allowed_ips 10.77.0.2/32
			preshared_key {file.%[1]s/home.psk}
		}
		peer cabin {
			public_key %[2]s
			allowed_ips %[3]s/32
			preshared_key {file.%[1]s/cabin.psk}
		}
`, s.relay.Folder, s.cabinKeys.Home.Public, cabinTunnelIP))
	var services strings.Builder
	for _, home := range soakHomes {
		fmt.Fprintf(&services, l4service, ":"+home.echo, home.name, "7000")
		fmt.Fprintf(&services, l4service, ":"+home.transfers, home.name, "7001")
		fmt.Fprintf(&services, l4service, "udp/:"+home.datagrams, home.name, "19132")
	}
	text = replace(s.t, text, "	layer4 {\n", "	layer4 {\n"+services.String())
	text = replace(s.t, text, "\n"+testnet.Domain+", "+testnet.Subdomain+" {", "\n"+testnet.Domain+" {")
	site := s.public.Issue(s.t, testnet.Subdomain)
	return text + fmt.Sprintf(`
%s {
	import access_log
	tls %s %s
	reverse_proxy https://cabin {
		transport wireguard
		stream_close_delay 12h
	}
}
`, testnet.Subdomain, site.Cert, site.Key)
}

// l4service relays a port to a home's port.
const l4service = `		%s {
			route {
				wireguard %s:%s
			}
		}
`

// cabinCaddyfile is our binary as home's end of a tunnel, in front of the same
// services.
func (s *soak) cabinCaddyfile(keepalive int) string {
	key := s.cabin.Secret(s.t, "wg0.key", s.cabinKeys.Home.Private)
	psk := s.cabin.Secret(s.t, "relay.psk", s.cabinKeys.Preshared)
	site := s.private.Issue(s.t, testnet.Subdomain)
	return fmt.Sprintf(`{
	storage file_system %[1]s/storage
	auto_https disable_redirects
	wireguard wg0 {
		private_key {file.%[2]s}
		address %[3]s/24
		peer relay {
			public_key %[4]s
			preshared_key {file.%[5]s}
			allowed_ips %[6]s/32
			endpoint %[7]s:51820
			persistent_keepalive %[11]ds
		}
	}
	layer4 {
		wireguard/wg0:7000 {
			route {
				proxy 127.0.0.1:7000
			}
		}
		wireguard/wg0:7001 {
			route {
				proxy 127.0.0.1:7001
			}
		}
		wireguard+udp/wg0:19132 {
			route {
				proxy udp/127.0.0.1:19132
			}
		}
	}
}
https://%[8]s {
	bind wireguard/wg0
	tls %[9]s %[10]s
	reverse_proxy 127.0.0.1:80 {
		stream_close_delay 12h
	}
}
`, s.cabin.Folder, key, cabinTunnelIP, s.cabinKeys.Relay.Public, psk, testnet.RelayTunnelIP, testnet.Endpoint,
		testnet.Subdomain, site.Cert, site.Key, keepalive)
}

// processesOf are all processes with a binary of their own.
func processesOf(t testing.TB, binary string) (pids []int) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		// One that has ended meanwhile is none.
		if program, err := os.Readlink(filepath.Join(process, "exe")); err != nil || strings.TrimSuffix(program, " (deleted)") != binary {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}
