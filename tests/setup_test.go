package tests

import (
	"bytes"
	"context"
	"crypto/tls"
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

// ownDisk is where each machine of a test finds files of its own, in place of the
// machine's that the test runs on.
const ownDisk = "/mnt"

// onOwnDisk is a command line that finds a folder at ownDisk. Namespaces have mounts of
// their own.
func onOwnDisk(folder string) []string {
	return []string{"sh", "-c", "mount --bind " + folder + " " + ownDisk + ` && exec "$@"`, "sh"}
}

// setup runs `caddy wireguard setup` as root on the VM, as its user does, and returns
// what it says. Its files are in the relay's folder, in etc.
func (w *world) setup(t *testing.T, arguments ...string) string {
	t.Helper()
	logs := filepath.Join(w.relay.Folder, "log")
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(logs, testnet.RelayUID, testnet.RelayUID); err != nil {
		t.Fatal(err)
	}
	w.relay.Surround(onOwnDisk(w.relay.Folder)...)
	return w.wireguard(t, append([]string{"setup",
		"--relay", testnet.Endpoint, "--folder", ownDisk + "/etc", "--home-folder", ownDisk + "/etc",
		"--storage", ownDisk + "/lib", "--logs", ownDisk + "/log", "--user", "nobody"}, arguments...)...)
}

// wireguard runs a command of `caddy wireguard` as root on the VM. None of the secrets
// there may be in what it says.
func (w *world) wireguard(t *testing.T, arguments ...string) string {
	t.Helper()
	line := append(append(onOwnDisk(w.relay.Folder), testnet.FastCaddy(t), "wireguard"), arguments...)
	said := w.Relay.Output(t, line[0], line[1:]...)
	for _, name := range []string{"wg0.key", "wg0-home.psk", "home/wg0.key"} {
		if secret, err := os.ReadFile(filepath.Join(w.relay.Folder, "etc", name)); err == nil && strings.Contains(said, strings.TrimSpace(string(secret))) {
			t.Errorf("the command shows %s", name)
		}
	}
	t.Logf("caddy wireguard %s\n%s", strings.Join(arguments, " "), said)
	return said
}

// written is a file that setup has written.
func (w *world) written(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(w.relay.Folder, "etc", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// carryHome installs what is for a home that runs our binary, there, as its user does.
func (w *world) carryHome(t *testing.T, folder string) *testnet.Relay {
	t.Helper()
	own := testnet.NewRelay(t, w.Home)
	own.UseBinary(testnet.FastCaddy(t))
	own.Surround(onOwnDisk(own.Folder)...)
	own.DropAll(t)
	for _, name := range []string{"etc", "log"} {
		if err := os.Mkdir(filepath.Join(own.Folder, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(own.Folder, name), testnet.RelayUID, testnet.RelayUID); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"wg0.key", "wg0-relay.psk"} {
		own.Secret(t, "etc/"+name, strings.TrimSpace(w.written(t, folder+"/"+name)))
	}
	return own
}

// page asks for a page through the relay, by a name that has an A record.
func (w *world) page(t *testing.T, config *tls.Config, url string) (string, error) {
	t.Helper()
	transport := w.Client.HTTPTransport(t)
	transport.TLSClientConfig = config
	response, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(body)), err
}

// TestSetup runs what `caddy wireguard setup` writes, as it is, at both ends.
func TestSetup(t *testing.T) {
	site := "--domain=" + testnet.Domain + "," + testnet.Subdomain

	t.Run("wg-quick", func(t *testing.T) {
		w := newWorld(t)
		w.relay.UseBinary(testnet.FastCaddy(t))
		ssh := services.StartSSH(t, w.Home)
		apache := services.StartApache(t, w.Home, w.private)
		acme := newACMEWorld(t, w.Internet, 24*time.Hour)
		w.relay.TrustRoots(roots(t, acme.ca.File, w.private.File))

		w.setup(t, site, "--transparent", "--service", "2022:22,19132/udp",
			"--vm-address", testnet.RelayIP+","+testnet.RelayIP6)
		w.relay.Start(t, w.written(t, "Caddyfile"))
		w.Home.SetHosts(t, map[string]string{testnet.Endpoint: testnet.RelayIP6})
		down := w.home.UpQuick(t, w.written(t, "home/wg0.conf"))
		defer down()
		w.home.WaitHandshake(t)

		pool := acme.roots(t)
		waitCertificates(t, w.Internet, pool, []string{testnet.Domain, testnet.Subdomain}, nil, 2*time.Minute)
		w.waitDNS(t, testnet.RelayIP, testnet.HomeIP6)
		got, err := w.page(t, &tls.Config{RootCAs: pool}, "https://"+testnet.Subdomain+"/?setup")
		if want := "this is " + testnet.Subdomain; err != nil || got != want {
			t.Errorf("the site is %q (%v), want %q", got, err, want)
		}
		testnet.Eventually(t, services.ApacheLogs, func() error {
			log, err := os.ReadFile(apache.AccessLog)
			if err == nil && !strings.Contains(string(log), "/?setup") {
				err = fmt.Errorf("Apache has not been asked:\n%s", log)
			}
			return err
		})
		// The source rule does its work: answers to clients anywhere leave by the tunnel.
		login(t, w, ssh)
		ssh.WaitLog(t, 0, `Accepted publickey for root from `+regexp.QuoteMeta(testnet.ClientIP)+` port `, 5*time.Second)
		whoAmI(t, w.Home.ListenPacket(t, "udp", testnet.HomeTunnelIP+":19132"))
		w.mustBeSeen(t, testnet.RelayIP+":19132")
	})

	t.Run("this binary", func(t *testing.T) {
		w := newWorld(t)
		testnet.Need(t, "curl")
		w.relay.UseBinary(testnet.FastCaddy(t))
		w.relay.DropAll(t)
		ssh := services.StartSSH(t, w.Home)
		syslog := services.StartSyslogNG(t, w.Home)
		services.Echo(t, w.Home, "", "127.0.0.1:19132")
		whoIsThere(t, w.Home, "127.0.0.1:8080")
		certificate := w.public.Issue(t, testnet.Domain, testnet.Subdomain)

		w.setup(t, site, "--web", "http:8080", "--service", "2022:22", "--service", "6514", "--service", "19132/udp",
			"--certificate", certificate.Cert, "--certificate-key", certificate.Key)
		own := w.carryHome(t, "home")
		w.relay.Start(t, w.written(t, "Caddyfile"))
		own.Start(t, w.written(t, "home/Caddyfile"))
		waitSessions(t, w.relay)
		unprivileged(t, w.relay, own)

		for _, version := range []string{"http1.1", "http2", "http3"} {
			get := w.curl
			if version == "http3" {
				get = w.http3Client(t)
			}
			got := get(t, version, "https://"+testnet.Domain+"/")
			if want := testnet.Domain + " for " + testnet.ClientIP; got.status != http.StatusOK || got.body != want {
				t.Errorf("%s: got %d, %q, want %q", version, got.status, got.body, want)
			}
		}
		if got, want := w.direct(t, w.public, "/", nil), testnet.Domain+" for "+testnet.ClientIP6; got != want {
			t.Errorf("without the relay the site is %q, want %q", got, want)
		}
		login(t, w, ssh)
		input := filepath.Join(testnet.Folder(t), "input")
		testnet.WriteFile(t, input, []byte("a message\n"), 0o644)
		services.StartRsyslog(t, w.Client, syslog, services.Rsyslog{Host: testnet.Endpoint, Mode: "x509/name", Program: "home", Input: input})
		testnet.Eventually(t, 30*time.Second, func() error {
			if got := syslog.Received(t, "home"); len(got) != 1 || got[0] != "a message" {
				return fmt.Errorf("syslog-ng has %q", got)
			}
			return nil
		})
		if err := w.dialUDP(t).echo("a datagram"); err != nil {
			t.Error(err)
		}

		t.Run("add", func(t *testing.T) { addLater(t, w, ssh) })
	})

	t.Run("FRITZ!Box", func(t *testing.T) {
		w := newWorld(t)
		testnet.Need(t, "curl")
		w.relay.UseBinary(testnet.FastCaddy(t))
		w.itself(t, "home", w.Router, w.Home)
		certificate := w.public.Issue(t, testnet.Domain, testnet.Subdomain)
		w.setup(t, site, "--fritzbox", "192.168.178.1/24", "--server", testnet.HomeLANIP, "--service", "2022:22",
			"--certificate", certificate.Cert, "--certificate-key", certificate.Key)
		w.relay.Start(t, w.written(t, "Caddyfile"))
		w.importFritzBox(t, w.Router, w.written(t, "home/fritzbox.conf"))
		if got, want := w.curl(t, "http2", "https://"+testnet.Domain+"/").body, "home for "+testnet.ClientIP; got != want {
			t.Errorf("the site is %q, want %q", got, want)
		}
		if got := w.says(t, "2022"); got != "home" {
			t.Errorf("port 2022 is that of %q", got)
		}
	})

	t.Run("passthrough", func(t *testing.T) {
		w := newWorld(t)
		testnet.Need(t, "curl")
		w.relay.UseBinary(testnet.FastCaddy(t))
		services.StartApache(t, w.Home, w.public)
		w.setup(t, site, "--web", "passthrough")
		w.relay.Start(t, w.written(t, "Caddyfile"))
		defer w.home.UpQuick(t, w.written(t, "home/wg0.conf"))()
		w.home.WaitHandshake(t)
		for _, url := range []string{"https://" + testnet.Domain + "/", "http://" + testnet.Domain + "/"} {
			if got, want := w.curl(t, "http1.1", url).body, "this is "+testnet.Domain; strings.TrimSpace(got) != want {
				t.Errorf("%s is %q, want %q", url, got, want)
			}
		}
	})
}

// roots is a file with the certificates of several.
func roots(t *testing.T, files ...string) string {
	t.Helper()
	var all bytes.Buffer
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(content)
	}
	path := filepath.Join(testnet.Folder(t), "roots.pem")
	testnet.WriteFile(t, path, all.Bytes(), 0o644)
	return path
}

// addLater adds a service of the home that there is, and then another home with one, as
// `add` says it, to a running relay.
func addLater(t *testing.T, w *world, ssh *services.SSH) {
	t.Helper()
	caddyfile := w.written(t, "Caddyfile")
	config := []string{"--config", ownDisk + "/etc/Caddyfile"}
	paste := func(said, block string) {
		t.Helper()
		_, said, ok := strings.Cut(said, "Paste this into the block `"+block+"` of "+ownDisk+"/etc/Caddyfile:\n\n")
		text, _, ended := strings.Cut(said, "\nthen: systemctl reload homeward\n")
		if !ok || !ended {
			t.Fatalf("nothing to paste into %s in\n%s", block, said)
		}
		caddyfile = replace(t, caddyfile, "\t"+block+" {\n", "\t"+block+" {\n"+text)
		testnet.WriteFile(t, filepath.Join(w.relay.Folder, "etc/Caddyfile"), []byte(caddyfile), 0o644)
		if out, err := w.relay.Reload(t, caddyfile); err != nil {
			t.Fatalf("%v\n%s\n%s", err, out, caddyfile)
		}
	}
	atSecondPort := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if out, err := ssh.Login(ctx, w.Client, testnet.Endpoint, "2222", "true").CombinedOutput(); err != nil {
			t.Errorf("logging in at the new port, %s: %v\n%s", when, err, out)
		}
	}
	paste(w.wireguard(t, append(config, "add", "service", "2222:22")...), "layer4")
	atSecondPort("once it is there")

	paste(w.wireguard(t, append(config, "add", "peer", "cabin", "--relay", testnet.Endpoint, "--user", "nobody")...), "wireguard wg0")
	paste(w.wireguard(t, append(config, "add", "service", "2223:22", "--peer", "cabin")...), "layer4")
	_, home := w.AddHome(t)
	listener := home.Listen(t, "tcp", ":22")
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "the cabin for "+conn.RemoteAddr().(*net.TCPAddr).IP.String())
			conn.Close()
		}
	}()
	cabin := testnet.NewHome(t, home, w.keys, testnet.HomeConfig{})
	defer cabin.UpQuick(t, w.written(t, "cabin/wg0.conf"))()
	cabin.WaitHandshake(t)
	if got, want := w.says(t, "2223"), "the cabin for "+testnet.RelayTunnelIP; got != want {
		t.Errorf("the second home's service is that of %q, want %q", got, want)
	}
	atSecondPort("beside another home's")
}
