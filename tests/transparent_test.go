package tests

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestTransparent runs caddyfile-examples/transparent.Caddyfile, and at home
// home.wg-quick.conf and the README's rules: what sshd, Apache and UDP programs see is
// the client's own address.
func TestTransparent(t *testing.T) {
	for _, stack := range []string{"gvisor", "kernel"} {
		t.Run(stack, func(t *testing.T) { testTransparent(t, stack) })
	}
}

func testTransparent(t *testing.T, stack string) {
	w := newWorld(t)
	testnet.Need(t, "curl")
	// Strict, as some distributions have it: an answer's way must be the
	// question's.
	w.Home.Sysctl(t, "net.ipv4.conf.all.rp_filter", "1")
	ssh := services.StartSSH(t, w.Home)
	apache := services.StartApache(t, w.Home, w.public)

	example := substitute(t, "caddyfile-examples/transparent.Caddyfile", w.paths(nil))
	w.relay.Start(t, replace(t, example, "listen_port 51820", "listen_port 51820\n\t\tstack "+stack))
	down := w.home.UpQuick(t, w.quick(t))
	w.home.WaitHandshake(t)
	w.relay.WaitLog(t, 0, `"stack":\s*"`+stack+`"`, 5*time.Second)

	for _, family := range []struct{ name, relay, client string }{
		{"IPv4", testnet.RelayIP, testnet.ClientIP},
		{"IPv6", testnet.RelayIP6, testnet.ClientIP6},
	} {
		t.Run("ssh over "+family.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			out, err := ssh.Login(ctx, w.Client, family.relay, "2022", "echo", "$SSH_CLIENT").CombinedOutput()
			if err != nil {
				t.Fatalf("logging in: %v\n%s", err, out)
			}
			if got := strings.Fields(string(out)); len(got) == 0 || got[0] != family.client {
				t.Errorf("the login came from %q", got)
			}
			ssh.WaitLog(t, 0, `Accepted publickey for root from `+regexp.QuoteMeta(family.client)+` port `, 5*time.Second)
			t.Logf("sshd: %s", lastLine(ssh.Log.String(), "Accepted publickey for root from "+family.client))
		})

		t.Run("https over "+family.name, func(t *testing.T) {
			page := w.Client.Output(t, "curl", "--silent", "--show-error", "--max-time", "30", "--cacert", w.public.File,
				"--resolve", fmt.Sprintf("%s:443:[%s]", testnet.Domain, family.relay), "https://"+testnet.Domain+"/?"+family.name)
			if want := "this is " + testnet.Domain; strings.TrimSpace(page) != want {
				t.Errorf("got %q, want %q", page, want)
			}
			var line string
			testnet.Eventually(t, services.ApacheLogs, func() error {
				log, err := os.ReadFile(apache.AccessLog)
				if line = lastLine(string(log), "/?"+family.name); err == nil && line == "" {
					err = fmt.Errorf("nothing of this in Apache's log:\n%s", log)
				}
				return err
			})
			if !strings.HasPrefix(line, family.client+" ") {
				t.Errorf("Apache has logged %q, want the client %s", line, family.client)
			}
			t.Logf("Apache: %s", line)
		})
	}

	t.Run("plain http", func(t *testing.T) {
		response, err := (&http.Client{Transport: w.Client.HTTPTransport(t), Timeout: 20 * time.Second}).Get("http://" + testnet.Domain + "/?plain")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		testnet.Eventually(t, services.ApacheLogs, func() error {
			log, _ := os.ReadFile(apache.AccessLog)
			if line := lastLine(string(log), "/?plain"); !strings.HasPrefix(line, testnet.ClientIP+" ") {
				return fmt.Errorf("Apache has logged %q", line)
			}
			return nil
		})
	})

	t.Run("the client's port", func(t *testing.T) {
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.RelayIP+":2022")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ssh.WaitLog(t, 0, fmt.Sprintf(`Connection from %s port %d `, testnet.ClientIP, conn.LocalAddr().(*net.TCPAddr).Port), 10*time.Second)
	})

	for _, udp := range []struct{ name, listen, relay string }{
		{"UDP on the tunnel's address", testnet.HomeTunnelIP + ":19132", testnet.RelayIP + ":19132"},
		{"UDP on the tunnel's IPv6 address", "[fd77::2]:19132", "[" + testnet.RelayIP6 + "]:19132"},
	} {
		t.Run(udp.name, func(t *testing.T) {
			whoAmI(t, w.Home.ListenPacket(t, "udp", udp.listen))
			w.mustBeSeen(t, udp.relay)
		})
	}

	// Without the connmark rules its answers leave by home's own way to the
	// internet, and come from the router's address if at all.
	t.Run("UDP on no address in particular", func(t *testing.T) {
		whoAmI(t, w.Home.ListenPacket(t, "udp4", "0.0.0.0:27015"))
		if seen, err := w.askWhoAmI(t, testnet.RelayIP+":27015", 1); err == nil {
			t.Errorf("home answered %s without the connmark rules", seen)
		}
		script := filepath.Join(testnet.Folder(t), "connmark.sh")
		testnet.WriteFile(t, script, []byte("set -e\n"+w.readme(t, "sh", "ct mark")), 0o755)
		w.Home.Output(t, "sh", script)
		w.mustBeSeen(t, testnet.RelayIP+":27015")
	})

	down()
	for _, version := range []string{"-4", "-6"} {
		if rules := w.Home.Output(t, "ip", version, "rule"); strings.Contains(rules, "from 10.77.0.2 ") || strings.Contains(rules, "from fd77::2 ") {
			t.Errorf("rules are left behind:\n%s", rules)
		}
	}
}

// whoAmI answers every datagram with the address that it came from.
func whoAmI(t testing.TB, socket *net.UDPConn) {
	t.Helper()
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			_, from, err := socket.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			socket.WriteToUDPAddrPort([]byte(from.String()), from)
		}
	}()
}

// mustBeSeen asks a UDP service and wants it to have seen the client's own
// address and port.
func (w *world) mustBeSeen(t testing.TB, address string) {
	t.Helper()
	if seen, err := w.askWhoAmI(t, address, 3); err != nil {
		t.Error(err)
	} else {
		t.Logf("home has seen %s", seen)
	}
}

// askWhoAmI asks a UDP service for the client's address, a few times, and
// compares it with the client's own.
func (w *world) askWhoAmI(t testing.TB, address string, tries int) (seen string, err error) {
	t.Helper()
	conn, err := w.Client.Dial(t.Context(), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buffer := make([]byte, 100)
	for range tries {
		if _, err = io.WriteString(conn, "who am I?"); err != nil {
			return "", err
		}
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		var n int
		if n, err = conn.Read(buffer); err == nil {
			seen = string(buffer[:n])
			if own := conn.LocalAddr().String(); seen != own {
				err = fmt.Errorf("home has seen %s, not the client's own %s", seen, own)
			}
			return seen, err
		}
	}
	return "", fmt.Errorf("asking %s: %w", address, err)
}

// lastLine is the last line of a log with a text in it.
func lastLine(log, text string) (last string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, text) {
			last = strings.TrimSpace(line)
		}
	}
	return last
}

// readme is the README's one fenced block of a language that has a text in it,
// made fit for this world's home.
func (w *world) readme(t testing.TB, language, text string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(testnet.Root(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, block := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(string(content), -1) {
		if block[1] == language && strings.Contains(block[2], text) {
			found = append(found, block[2])
		}
	}
	if len(found) != 1 {
		t.Fatalf("the README has %d blocks of %s with %q", len(found), language, text)
	}
	return strings.ReplaceAll(found[0], "wg0", w.home.Interface)
}

// quick is caddyfile-examples/home.wg-quick.conf with this world's keys.
func (w *world) quick(t testing.TB) string {
	t.Helper()
	return substitute(t, "caddyfile-examples/home.wg-quick.conf", map[string]string{
		"HOMES-PRIVATE-KEY-GOES-HERE": w.keys.Home.Private,
		exampleRelayKey:               w.keys.Relay.Public,
	})
}
