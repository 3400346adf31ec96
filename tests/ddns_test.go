package tests

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// newDDNSWorld is a world whose home calls the relay by IPv6, with a DuckDNS.
func newDDNSWorld(t *testing.T) (*world, *acmeWorld) {
	t.Helper()
	w := newWorld(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	w.home = testnet.NewHome(t, w.Home, w.keys, testnet.HomeConfig{Endpoint: "[" + testnet.RelayIP6 + "]:51820", Keepalive: 1})
	internet := newACMEWorld(t, w.Internet, 24*time.Hour)
	w.relay.TrustRoots(internet.ca.File)
	return w, internet
}

// ddns is ports.Caddyfile with a block that keeps example.duckdns.org right.
func (w *world) ddns(t *testing.T, a, aaaa string, options ...string) string {
	t.Helper()
	block := append([]string{"provider duckdns {file." + w.relay.Secret(t, "token", duckToken) + "}", "a " + a}, options...)
	if aaaa != "" {
		block = append(block, "aaaa "+aaaa)
	}
	return replace(t, w.ports(t), "	layer4 {\n", "	ddns "+testnet.Domain+" {\n		"+strings.Join(block, "\n		")+"\n	}\n	layer4 {\n")
}

// dig asks the name server for a record, as everybody can.
func (w *world) dig(t *testing.T, name, kind string) string {
	t.Helper()
	return strings.TrimSpace(w.Client.Output(t, "dig", "+short", "+time=5", "@"+nameServerIP, name, kind))
}

// waitDNS waits until example.duckdns.org has the given records.
func (w *world) waitDNS(t *testing.T, a, aaaa string) {
	t.Helper()
	w.waitDNSOf(t, testnet.Domain, a, aaaa)
}

func (w *world) waitDNSOf(t *testing.T, name, a, aaaa string) {
	t.Helper()
	testnet.Eventually(t, 60*time.Second, func() error {
		if gotA, gotAAAA := w.dig(t, name, "A"), w.dig(t, name, "AAAA"); gotA != a || gotAAAA != aaaa {
			return fmt.Errorf("A is %q and AAAA is %q, want %q and %q", gotA, gotAAAA, a, aaaa)
		}
		return nil
	})
}

// TestDDNS has A = the VM and AAAA = home, where home has nothing but a WireGuard. Each
// moves alone.
func TestDDNS(t *testing.T) {
	t.Parallel() // it mostly waits
	testnet.Need(t, "dig")
	w, internet := newDDNSWorld(t)
	web := w.Home.Listen(t, "tcp", "[::]:443")
	w.relay.Start(t, w.ddns(t, "static "+testnet.RelayIP, "peer home"))
	w.waitDNS(t, testnet.RelayIP, "")

	w.home.Up(t)
	w.waitDNS(t, testnet.RelayIP, testnet.HomeIP6)

	if err := w.Renumber(false); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	w.waitDNS(t, testnet.RelayIP, testnet.HomeIP6B)
	figure(t, "home's address changed: AAAA follows after %.1f s (keepalive 1), and A stays", time.Since(begin).Seconds())

	// A reload, and a restart, set nothing that is right.
	moves := len(internet.duckDNS.Moves())
	if moves != 3 {
		t.Errorf("%d updates so far, want 3: %q", moves, internet.duckDNS.Moves())
	}
	for range 3 {
		if out, err := w.relay.Reload(t, w.ddns(t, "static "+testnet.RelayIP, "peer home", "check 443")); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	w.relay.Stop()
	mark := w.relay.Log.Len()
	w.relay.Start(t, w.ddns(t, "static "+testnet.RelayIP, "peer home"))
	for _, kind := range []string{"A", "AAAA"} {
		w.relay.WaitLog(t, mark, `"msg":"the record is right already","domain":"`+testnet.Domain+`","type":"`+kind+`"`, 40*time.Second)
	}
	if now := internet.duckDNS.Moves(); len(now) != moves {
		t.Errorf("updates of what was right: %q", now[moves:])
	}

	if out, err := w.relay.Reload(t, w.ddns(t, "static 203.0.113.77", "peer home ::1234/64", "check off")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.waitDNS(t, "203.0.113.77", strings.TrimSuffix(testnet.HomeIP6B, "20")+"1234")

	// An address that does not answer is not published.
	web.Close()
	mark = w.relay.Log.Len()
	if out, err := w.relay.Reload(t, w.ddns(t, "static "+testnet.RelayIP, "peer home")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.waitDNS(t, testnet.RelayIP, strings.TrimSuffix(testnet.HomeIP6B, "20")+"1234")
	w.relay.WaitLog(t, mark, `the new address does not answer.*"address":"`+testnet.HomeIP6B+`"`, 20*time.Second)
	w.Home.Listen(t, "tcp", "[::]:443")
	w.waitDNS(t, testnet.RelayIP, testnet.HomeIP6B)
}

// TestDDNSAtHome has each end keep its own record right, both at once: the VM A, and home,
// which is our binary, AAAA. Of home's addresses that is the one which stays.
func TestDDNSAtHome(t *testing.T) {
	testnet.Need(t, "dig")
	w := newWorld(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	internet := newACMEWorld(t, w.Internet, 24*time.Hour)
	w.relay.TrustRoots(internet.ca.File)
	serveNames(t, w.Home)
	own := newOwnHome(t, w)
	own.UseBinary(testnet.FastCaddy(t))

	// As routers' announcements make them: none is for ever, and the kernel makes a
	// temporary one by itself. What is not to be published comes first in order.
	w.Home.Sysctl(t, "net.ipv6.conf.eth0.use_tempaddr", "2")
	w.Home.IP(t,
		"addr change "+testnet.HomeIP6+"/64 dev eth0 nodad valid_lft 86400 preferred_lft 14400 mngtmpaddr",
		"addr add 2001:db8:8::2/64 dev eth0 nodad valid_lft 86400 preferred_lft 0",
		"addr add fd12:3456::20/64 dev eth0 nodad",
	)
	for _, kind := range []string{"temporary", "deprecated"} {
		if w.Home.Output(t, "ip", "-6", "addr", "show", "dev", "eth0", kind) == "" {
			t.Fatalf("home has no %s address", kind)
		}
	}

	w.relay.Start(t, w.ddns(t, "static "+testnet.RelayIP, ""))
	own.Start(t, w.ownExample(t, own, "home.Caddyfile", w.private, map[string]string{
		"	# ddns example.duckdns.org {\n	# 	provider duckdns {env.DUCKDNS_TOKEN}\n	# 	aaaa interface eth0\n	# }\n": "	ddns example.duckdns.org {\n		provider duckdns {env.DUCKDNS_TOKEN}\n		aaaa interface eth0\n	}\n",
	}))
	unprivileged(t, own)
	w.waitDNS(t, testnet.RelayIP, testnet.HomeIP6)

	// Another prefix. The former address stays for a while, and then goes.
	if err := w.Renumber(true); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	w.waitDNS(t, testnet.RelayIP, testnet.HomeIP6B)
	figure(t, "home's prefix changed: AAAA follows after %.1f s, set by home itself", time.Since(begin).Seconds())
	w.Home.IP(t, "addr del "+testnet.HomeIP6+"/64 dev eth0")

	// Each moves its own alone.
	if out, err := w.relay.Reload(t, w.ddns(t, "static 203.0.113.77", "")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.waitDNS(t, "203.0.113.77", testnet.HomeIP6B)
	if err := w.Renumber(false); err != nil {
		t.Fatal(err)
	}
	w.waitDNS(t, "203.0.113.77", testnet.HomeIP6)

	// A router that has forgotten the former prefix does not take it back.
	forgotten := strings.TrimSuffix(testnet.HomeIP6B, "20") + "99"
	w.Home.IP(t,
		"addr change "+testnet.HomeIP6+"/64 dev eth0 nodad valid_lft 86400 preferred_lft 14400",
		"addr add "+forgotten+"/64 dev eth0 nodad valid_lft 86400 preferred_lft 14400",
	)
	w.waitDNS(t, "203.0.113.77", forgotten)

	moves := internet.duckDNS.Moves()
	slices.Sort(moves[:min(2, len(moves))]) // whose was first does not matter
	var want []string
	for _, address := range []string{testnet.HomeIP6, testnet.RelayIP, testnet.HomeIP6B, "203.0.113.77", testnet.HomeIP6, forgotten} {
		want = append(want, "example "+address)
	}
	if !slices.Equal(moves, want) {
		t.Errorf("DuckDNS has been told %q, want %q", moves, want)
	}
	if strings.Contains(own.Log.String(), duckToken) {
		t.Error("home's log has the token")
	}
}

// TestDDNSFailures has DuckDNS fail in every way that it can, for the records of the ddns
// app and for certificates. The token is nowhere to be read, and in the end all is right.
func TestDDNSFailures(t *testing.T) {
	t.Parallel() // they mostly wait
	testnet.Need(t, "dig")
	for _, failure := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request)
		logged string
	}{
		{"KO", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "KO") }, `got \(KO\)`},
		{"500", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, "no %s today", r.URL)
		}, `today`},
		{"reset", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, `EOF|reset|INTERNAL_ERROR`},
		{"timeout", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, `deadline exceeded|canceled`},
	} {
		t.Run(failure.name, func(t *testing.T) {
			t.Parallel()
			if failure.name == "timeout" && os.Getenv("HOMEWARD_LAB") == "" {
				t.Skip("takes a minute: for the laboratory")
			}
			w, internet := newDDNSWorld(t)
			var failed atomic.Int32
			over := make(chan struct{})
			internet.duckDNS.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				select {
				case <-over:
					return false
				default:
				}
				failed.Add(1)
				failure.answer(w, r)
				return true
			}
			caddyfile := replace(t, w.ddns(t, "static "+testnet.RelayIP, "peer home", "check off"), "	auto_https off\n", "	debug\n") +
				"\n" + testnet.Subdomain + " {\n	tls {\n		dns duckdns {env.DUCKDNS_TOKEN}\n	}\n	respond hello\n}\n"
			w.relay.Start(t, caddyfile)
			w.home.Up(t)
			w.relay.WaitLog(t, 0, `setting the record has failed.*(`+failure.logged+`)`, 60*time.Second)
			w.relay.WaitLog(t, 0, `(?i)"logger":"tls.*presenting for challenge.*(`+failure.logged+`)`, 90*time.Second)
			close(over)
			w.waitDNS(t, testnet.RelayIP, testnet.HomeIP6)
			if failed.Load() < 2 {
				t.Errorf("DuckDNS has failed %d times", failed.Load())
			}
			said := map[string]string{
				"the log":             w.relay.Log.String(),
				"/config/":            w.relay.Admin(t, "/config/"),
				"/metrics":            w.relay.Admin(t, "/metrics"),
				"/wireguard/":         w.relay.Admin(t, "/wireguard/"),
				"/debug/vars":         w.relay.Admin(t, "/debug/vars"),
				"Caddy's own copy":    autosave(t, w.relay.Folder),
				"the adapted result":  adapted(t, w.relay),
				"the process's title": fmt.Sprint(os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", w.relay.PID))),
			}
			for where, text := range said {
				if strings.Contains(text, duckToken) {
					t.Errorf("%s has the token", where)
				}
			}
			if metrics := said["/metrics"]; !strings.Contains(metrics, `caddy_ddns_updates_total{domain="`+testnet.Domain+`",result="updated",type="A"} 1`) {
				t.Errorf("the metrics do not count the update of A:\n%s", grep(metrics, "caddy_ddns"))
			}
		})
	}
}

// autosave is what Caddy keeps of its configuration.
func autosave(t *testing.T, folder string) string {
	t.Helper()
	content, err := os.ReadFile(folder + "/config/caddy/autosave.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func adapted(t *testing.T, relay *testnet.Relay) string {
	t.Helper()
	out, err := relay.Run("adapt", "--config", relay.Folder+"/Caddyfile", "--adapter", "caddyfile", "--validate")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return out
}

// grep is the lines of a text that have a word in them.
func grep(text, word string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// TestDDNSExample has caddyfile-examples/relay.Caddyfile keep the records of both names.
func TestDDNSExample(t *testing.T) {
	testnet.Need(t, "dig")
	w, _ := newDDNSWorld(t)
	w.Home.Listen(t, "tcp", "[::]:443")
	w.relay.Start(t, w.example(t))
	w.home.Up(t)
	w.waitDNS(t, testnet.RelayIP, testnet.HomeIP6)
	w.waitDNSOf(t, testnet.Endpoint, testnet.RelayIP, testnet.RelayIP6)
}
