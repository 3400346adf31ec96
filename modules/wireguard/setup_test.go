package wireguard

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/homeward-relay/homeward/modules/internal/wgquick"
)

// setUp runs setup with flags in a folder of the test's own and returns what it says.
func setUp(t *testing.T, flags ...string) (said, folder string, err error) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "etc")
	said, err = execute(setupCommand(), append([]string{"--folder", folder, "--user", "root"}, flags...)...)
	return said, folder, err
}

func TestSetupFiles(t *testing.T) {
	t.Setenv(duckDNSToken, "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61")
	for _, test := range []struct {
		name  string
		flags []string
		want  []string // files
		has   map[string][]string
	}{
		{"https", []string{"--domain=example.duckdns.org,sub.example.duckdns.org", "--relay=vm.example.org", "--service=2022:22"},
			[]string{"Caddyfile", "caddy.env", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{
				"Caddyfile":      {"reverse_proxy https://home {", "\thandle @challenge {\n\t\treverse_proxy http://home {\n", "dns duckdns {env.DUCKDNS_TOKEN}", "http://example.duckdns.org, http://sub.example.duckdns.org {", "\t\t:2022 {", "wireguard home:22\n"},
				"home/Caddyfile": {"wireguard/wg0:443 {", "wireguard/wg0:80 {", "wireguard 127.0.0.1:22 {", "endpoint vm.example.org:51820"},
				"home/wg0.conf":  {"Address = 10.77.0.2/24", "AllowedIPs = 10.77.0.1/32", "Endpoint = vm.example.org:51820"},
				"caddy.env":      {"DUCKDNS_TOKEN=0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61\n"},
			}},
		{"http and another port", []string{"--domain=example.duckdns.org", "--relay=203.0.113.5", "--web=http:8080", "--listen-port=51821"},
			[]string{"Caddyfile", "caddy.env", "home/Caddyfile", "home/caddy.env", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{
				"Caddyfile":      {"reverse_proxy http://home:8080 {", "listen_port 51821"},
				"home/Caddyfile": {"wireguard/wg0:8080 {", "bind [::]", "reverse_proxy 127.0.0.1:8080 {"},
				"home/wg0.conf":  {"Endpoint = 203.0.113.5:51821"},
			}},
		{"certificate", []string{"--domain=www.example.org", "--relay=203.0.113.5", "--certificate=/x/a cert.pem", "--certificate-key=/x/a.key"},
			[]string{"Caddyfile", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{"Caddyfile": {"get_certificate file `/x/a cert.pem` /x/a.key\n"}}},
		{"passthrough", []string{"--domain=www.example.org", "--relay=203.0.113.5", "--web=passthrough"},
			[]string{"Caddyfile", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{"Caddyfile": {"\t\t:80 {", "\t\t:443 {", "\t\tudp/:443 {"}, "home/Caddyfile": {"wireguard+udp/wg0:443 {"}}},
		{"http at port 80, and a name twice", []string{"--domain=example.duckdns.org,Example.duckdns.org", "--relay=203.0.113.5", "--web=http:80"},
			[]string{"Caddyfile", "caddy.env", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{"Caddyfile": {"\nexample.duckdns.org {", "http://home:80 {"}, "home/Caddyfile": {"\t}\n}\n"}}},
		{"no web", []string{"--relay=203.0.113.5", "--web=none", "--service=7000-7010:8000-8010/udp"},
			[]string{"Caddyfile", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{"Caddyfile": {"udp/:7000-7010 {", "wireguard home:8000-8010\n"}, "home/Caddyfile": {"wireguard+udp/wg0:8000-8010 {", "wireguard 127.0.0.1:8000-8010 {"}}},
		{"transparent mail", []string{"--relay=203.0.113.5", "--web=none", "--service=25,2525:587/proxy_protocol", "--transparent"},
			[]string{"Caddyfile", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{
				"Caddyfile":      {"address 10.77.0.1/24 fd77::1/64", "wireguard home:25 {\n\t\t\t\t\ttransparent\n", "wireguard home:587 {\n\t\t\t\t\tproxy_protocol v2\n"},
				"home/wg0.conf":  {"AllowedIPs = 0.0.0.0/0, ::/0", "PostUp = ip -4 rule add from 10.77.0.2 table 51820"},
				"home/Caddyfile": {"allowed_ips 0.0.0.0/0 ::/0", "wireguard/wg0:587 {", "# Port 25 is left out"},
			}},
		{"FRITZ!Box", []string{"--domain=example.duckdns.org", "--relay=vm.example.org", "--fritzbox=192.168.178.1/24", "--server=192.168.178.20", "--vm-address=203.0.113.5"},
			[]string{"Caddyfile", "caddy.env", "home/fritzbox.conf", "wg0-home.psk", "wg0.key"},
			map[string][]string{"Caddyfile": {"allowed_ips 192.168.178.0/24", "host 192.168.178.20", "\t\ta static 203.0.113.5\n\t\t# aaaa peer home ::"}}},
		{"records", []string{"--domain=example.duckdns.org,sub.example.duckdns.org,www.example.org", "--relay=example-vm.duckdns.org", "--web=passthrough", "--vm-address=203.0.113.5,2001:db8:5::5"},
			[]string{"Caddyfile", "caddy.env", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{"Caddyfile": {
				"\tddns example.duckdns.org {\n\t\tprovider duckdns {env.DUCKDNS_TOKEN}\n\t\ta static 203.0.113.5\n\t\taaaa peer home\n\t}\n",
				"\tddns example-vm.duckdns.org {\n\t\tprovider duckdns {env.DUCKDNS_TOKEN}\n\t\ta static 203.0.113.5\n\t\taaaa static 2001:db8:5::5\n\t}\n\n\t#",
			}}},
		{"records for a relay called by address", []string{"--domain=example.duckdns.org", "--relay=203.0.113.5"},
			[]string{"Caddyfile", "caddy.env", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"},
			map[string][]string{"Caddyfile": {"\t\ta static 203.0.113.5\n\t\t# aaaa peer home "}}},
		{"no records", []string{"--domain=example.duckdns.org", "--relay=203.0.113.5", "--vm-address=none", "--web=passthrough"},
			[]string{"Caddyfile", "home/Caddyfile", "home/wg0-relay.psk", "home/wg0.conf", "home/wg0.key", "wg0-home.psk", "wg0.key"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			said, folder, err := setUp(t, test.flags...)
			if err != nil {
				t.Fatal(err)
			}
			if got := filesIn(t, folder); !slices.Equal(got, test.want) {
				t.Errorf("got the files %q, want %q", got, test.want)
			}
			for name, parts := range test.has {
				for _, part := range parts {
					if content := readText(t, folder, name); !strings.Contains(content, part) {
						t.Errorf("%s has no %q:\n%s", name, part, content)
					}
				}
			}
			hasPorts := slices.ContainsFunc(test.flags, func(f string) bool { return strings.HasPrefix(f, "--service=") })
			hasSite := slices.ContainsFunc(test.flags, func(f string) bool { return strings.HasPrefix(f, "--domain=") })
			if got := strings.Contains(said, "call home itself"); got != (hasPorts && hasSite) {
				t.Errorf("it is said by which name ports are used: %v\n%s", got, said)
			}
			for _, name := range test.want {
				if info, err := os.Stat(filepath.Join(folder, name)); err != nil || runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
					t.Errorf("%s: %v, everybody may do something with it: %v", name, err, info.Mode())
				}
				if !strings.Contains(said, filepath.Join(folder, name)) {
					t.Errorf("nothing is said of %s:\n%s", name, said)
				}
				content := strings.TrimSpace(readText(t, folder, name))
				if strings.Contains(content, "invalid") {
					t.Errorf("%s has something invalid:\n%s", name, content)
				}
				if secret := filepath.Ext(name); (secret == ".key" || secret == ".psk") && strings.Contains(said, content) {
					t.Errorf("the secret of %s is shown", name)
				}
			}
			if strings.Contains(said, "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61") {
				t.Error("the token is shown")
			}
			if name := "home/fritzbox.conf"; slices.Contains(test.want, name) {
				file, err := wgquick.Parse(name, []byte(readText(t, folder, name)))
				if err != nil {
					t.Fatal(err)
				}
				if err := file.CheckFritzBox(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func filesIn(t *testing.T, folder string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			var name string
			name, err = filepath.Rel(folder, path)
			names = append(names, filepath.ToSlash(name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func readText(t *testing.T, folder, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestSetupErrors(t *testing.T) {
	t.Setenv(duckDNSToken, "")
	for _, test := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"no domain", []string{"--relay=203.0.113.5"}, "--domain"},
		{"no relay", []string{"--domain=example.duckdns.org"}, "--relay"},
		{"no token", []string{"--domain=example.duckdns.org", "--relay=203.0.113.5"}, "DUCKDNS_TOKEN"},
		{"no token for records", []string{"--domain=example.duckdns.org", "--relay=vm.example.org", "--web=passthrough", "--vm-address=203.0.113.5"}, "DUCKDNS_TOKEN"},
		{"private address", []string{"--domain=example.duckdns.org", "--relay=vm.example.org", "--web=passthrough", "--vm-address=10.0.0.5"}, "private address"},
		{"two addresses", []string{"--domain=example.duckdns.org", "--relay=vm.example.org", "--web=passthrough", "--vm-address=203.0.113.5,203.0.113.6"}, "second address"},
		{"no address", []string{"--domain=example.duckdns.org", "--relay=vm.example.org", "--web=passthrough", "--vm-address=vm"}, "no address of the VM"},
		{"not at DuckDNS", []string{"--domain=www.example.org", "--relay=203.0.113.5"}, "is not at DuckDNS"},
		{"home would call itself", []string{"--domain=example.duckdns.org", "--relay=Example.duckdns.org"}, "home would call itself"},
		{"relay with a port", []string{"--domain=example.duckdns.org", "--relay=vm.example.org:51820"}, "--listen-port"},
		{"relay on loopback", []string{"--web=none", "--relay=127.0.0.1"}, "not the address of a VM"},
		{"domain", []string{"--domain=https://example.duckdns.org", "--relay=203.0.113.5"}, "is no domain name"},
		{"web", []string{"--domain=example.duckdns.org", "--relay=203.0.113.5", "--web=ftp"}, "is no web server"},
		{"web's port", []string{"--domain=example.duckdns.org", "--relay=203.0.113.5", "--web=http:0"}, "no port from 1 to 65535"},
		{"half a certificate", []string{"--domain=www.example.org", "--relay=203.0.113.5", "--certificate=/x"}, "go together"},
		{"mail", []string{"--web=none", "--relay=203.0.113.5", "--service=2525:25"}, "relay for the whole internet"},
		{"mail in a range", []string{"--web=none", "--relay=203.0.113.5", "--service=460-470"}, "relay for the whole internet"},
		{"twice", []string{"--web=none", "--relay=203.0.113.5", "--service=2022:22,2020-2024"}, "TCP port 2022 is taken"},
		{"the web's port", []string{"--domain=example.org", "--web=passthrough", "--relay=203.0.113.5", "--service=443:8443"}, "TCP port 443 is taken"},
		{"the tunnel's port", []string{"--web=none", "--relay=203.0.113.5", "--service=51820/udp"}, "UDP port 51820 is taken"},
		{"the admin API's port", []string{"--web=none", "--relay=203.0.113.5", "--service=2019"}, "admin API"},
		{"home's admin API", []string{"--web=none", "--relay=203.0.113.5", "--service=12019:2019"}, "admin API"},
		{"home's admin API in a range", []string{"--web=none", "--relay=203.0.113.5", "--service=3000-3030:2000-2030"}, "admin API"},
		{"HTTP/3's port", []string{"--domain=www.example.org", "--web=passthrough", "--relay=203.0.113.5", "--listen-port=443"}, "HTTP/3"},
		{"relay below the domain", []string{"--domain=example.duckdns.org", "--relay=vm.example.duckdns.org"}, "home would call itself"},
		{"domain below the relay", []string{"--domain=www.example.duckdns.org", "--relay=example.duckdns.org"}, "home would call itself"},
		{"server without a box", []string{"--web=none", "--relay=203.0.113.5", "--server=192.168.178.20"}, "--fritzbox"},
		{"server elsewhere", []string{"--web=none", "--relay=vm.example.org", "--fritzbox=192.168.178.1/24", "--server=192.168.1.20"}, "192.168.178.0/24"},
		{"box by address", []string{"--web=none", "--relay=203.0.113.5", "--fritzbox=192.168.178.1/24", "--server=192.168.178.20"}, "wants a name"},
		{"transparent box", []string{"--web=none", "--relay=vm.example.org", "--fritzbox=192.168.178.1/24", "--server=192.168.178.20", "--transparent"}, "transparent cannot be had"},
		{"the box's network", []string{"--web=none", "--relay=vm.example.org", "--fritzbox=10.77.0.2/24", "--server=10.77.0.20"}, "10.77.0"},
		{"address", []string{"--web=none", "--relay=203.0.113.5", "--address=10.77.0.1"}, "length of its network"},
		{"full network", []string{"--web=none", "--relay=203.0.113.5", "--address=10.77.0.1/31"}, "no address left"},
	} {
		t.Run(test.name, func(t *testing.T) {
			said, folder, err := setUp(t, test.flags...)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			if _, err := os.Stat(folder); err == nil {
				t.Error("something has been written")
			}
			if strings.Contains(said, "Usage:") && !strings.Contains(err.Error(), "flag") {
				t.Errorf("the usage is shown for what is not the usage:\n%s", said)
			}
		})
	}
}

func TestSetupOverwritesNothing(t *testing.T) {
	_, folder, err := setUp(t, "--relay=203.0.113.5", "--web=none")
	if err != nil {
		t.Fatal(err)
	}
	before := make(map[string]string)
	for _, name := range filesIn(t, folder) {
		before[name] = readText(t, folder, name)
	}
	again := func() error {
		_, err := execute(setupCommand(), "--folder", folder, "--user", "root", "--relay=203.0.113.6", "--web=none")
		return err
	}
	if err := again(); err == nil || !strings.Contains(err.Error(), filepath.Join(folder, "wg0.key")) {
		t.Errorf("got %v, want an error that names the files that are there", err)
	}
	// With one of them left it is no other.
	for name := range before {
		if name != "home/wg0.key" {
			os.Remove(filepath.Join(folder, name))
		}
	}
	if err := again(); err == nil {
		t.Error("it has been done over the file that was left")
	}
	if got := filesIn(t, folder); !slices.Equal(got, []string{"home/wg0.key"}) || readText(t, folder, got[0]) != before[got[0]] {
		t.Errorf("now there are %q", got)
	}
}

func TestWriteNewFilesAllOrNone(t *testing.T) {
	folder := t.TempDir()
	err := writeNewFiles([]newFile{
		{path: filepath.Join(folder, "first"), mode: 0o600},
		{path: filepath.Join(folder, "none/second"), mode: 0o600},
	})
	if err == nil {
		t.Error("a file has been written to a folder that is not there")
	}
	if got := filesIn(t, folder); len(got) > 0 {
		t.Errorf("%q is left", got)
	}
}

func TestParseService(t *testing.T) {
	for _, test := range []struct{ text, relay, home string }{
		{"6514", ":6514", "home:6514"},
		{"2022:22", ":2022", "home:22"},
		{"2022:22/tcp", ":2022", "home:22"},
		{"19132/udp", "udp/:19132", "home:19132"},
		{"7000-7010:8000-8010", ":7000-7010", "home:8000-8010"},
		{"25/proxy_protocol", ":25", "home:25 proxy_protocol v2"},
		{"53/udp/proxy_protocol", "udp/:53", "home:53 proxy_protocol v2"},
		{"0", "", "port from 1 to 65535"},
		{"65536", "", "port from 1 to 65535"},
		{"22:ssh", "", "port from 1 to 65535"},
		{"22:", "", "port from 1 to 65535"},
		{"", "", "port from 1 to 65535"},
		{"7010-7000", "", "ends before it begins"},
		{"7000-7010:8000-8011", "", "differ in size"},
		{"7000-7010:8000", "", "differ in size"},
		{"22/sctp", "", "no /sctp"},
	} {
		t.Run(test.text, func(t *testing.T) {
			s, err := parseService(test.text)
			if test.relay == "" {
				if err == nil || !strings.Contains(err.Error(), test.home) {
					t.Errorf("got %v, want an error with %q", err, test.home)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text := s.atRelay("home", false)
			if got := strings.Join(append([]string{text.Upstream}, text.Options...), " "); text.Listen != test.relay || got != test.home {
				t.Errorf("got %s and %s, want %s and %s", text.Listen, got, test.relay, test.home)
			}
		})
	}
}

func TestFreeAddress(t *testing.T) {
	for _, test := range []struct {
		own   string
		taken []string
		want  string
	}{
		{"10.77.0.1/24", nil, "10.77.0.2"},
		{"10.77.0.1/24", []string{"10.77.0.2/32", "10.77.0.4/32"}, "10.77.0.3"},
		{"10.77.0.2/24", nil, "10.77.0.1"},
		{"10.77.0.1/24", []string{"10.77.0.0/29"}, "10.77.0.8"},
		{"fd77::1/64", []string{"fd77::2/128"}, "fd77::3"},
		{"10.77.0.1/30", nil, "10.77.0.2"},
		{"10.77.0.1/30", []string{"10.77.0.2/32"}, ""},
		{"10.77.0.1/24", []string{"10.77.0.0/24"}, ""},
	} {
		var taken []netip.Prefix
		for _, text := range test.taken {
			taken = append(taken, netip.MustParsePrefix(text))
		}
		got, err := freeAddress(netip.MustParsePrefix(test.own), taken)
		if test.want == "" && err == nil || test.want != "" && (err != nil || got.String() != test.want) {
			t.Errorf("beside %s and %s: got %v (%v), want %s", test.own, test.taken, got, err, test.want)
		}
	}
}

func TestQuestions(t *testing.T) {
	none := func(string) bool { return false }
	for _, test := range []struct {
		name, answers, token string
		given                []string
		want                 *setup // nil: an error
	}{
		{"all", "example.duckdns.org, sub.example.duckdns.org\n\n\nvm.example.org\n\n2022:22 6514\n\n", "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61", nil,
			&setup{domains: []string{"example.duckdns.org", "sub.example.duckdns.org"}, relay: "vm.example.org", web: "https", services: []string{"2022:22", "6514"}, vmAddresses: []string{"192.0.2.1", "2001:db8::1"}, token: "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61"}},
		{"repeated", "no name\nexample.duckdns.org\nhttp\nhttp:8080\n\nexample.duckdns.org\n203.0.113.5\nperhaps\nyes\n22:x\n25\n10.0.0.1\n\n", "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61", nil,
			&setup{domains: []string{"example.duckdns.org"}, relay: "203.0.113.5", web: "http:8080", transparent: true, services: []string{"25"}, vmAddresses: []string{"203.0.113.5", "2001:db8::1"}, token: "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61"}},
		{"no web", "\n\n203.0.113.5\nno\n\n", "", nil, &setup{relay: "203.0.113.5", web: "none"}},
		{"FRITZ!Box", "example.org\npassthrough\n192.168.178.1\n192.168.178.1/24\n192.168.178.1\n192.168.178.20\n203.0.113.5\nvm.example.org\n\n", "", nil,
			&setup{domains: []string{"example.org"}, relay: "vm.example.org", web: "passthrough", fritzBox: "192.168.178.1/24", server: "192.168.178.20"}},
		{"given", "\n203.0.113.5\nno\n", "", []string{"domain", "web", "service"}, &setup{relay: "203.0.113.5", web: "none"}},
		{"all is given", "", "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61", []string{"domain", "relay"}, &setup{web: "https", token: "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61"}},
		{"no records", "example.duckdns.org\npassthrough\n\nvm.example.org\n\n\nnone\n", "", nil,
			&setup{domains: []string{"example.duckdns.org"}, relay: "vm.example.org", web: "passthrough", vmAddresses: []string{"none"}}},
		{"token for records", "example.duckdns.org\npassthrough\n\nvm.example.org\n\n\n\n", "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61", nil,
			&setup{domains: []string{"example.duckdns.org"}, relay: "vm.example.org", web: "passthrough", vmAddresses: []string{"192.0.2.1", "2001:db8::1"}, token: "0f6c9d1e-5b5b-4a1c-9f50-7a3f6f2f4f61"}},
		{"never right", strings.Repeat("no name\n", 10), "", nil, nil},
		{"end", "example.duckdns.org\n", "", nil, nil},
		{"bad token", "example.duckdns.org\n\n\n203.0.113.5\n\n\n\n", "two words", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			given := none
			got := &setup{web: webHTTPS}
			if test.given != nil {
				given = func(flag string) bool { return slices.Contains(test.given, flag) }
				if given("web") {
					got.web = webNone
				}
			}
			var out strings.Builder
			q := newQuestions(strings.NewReader(test.answers), &out, func() (string, error) {
				if test.token == "" {
					return "", errors.New("no token was to be asked for")
				}
				return test.token, nil
			})
			q.outgoing = func() []netip.Addr {
				return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
			}
			err := got.ask(q, given)
			switch {
			case test.want == nil && err == nil:
				t.Errorf("it is accepted:\n%s", &out)
			case test.want != nil && err != nil:
				t.Errorf("%v:\n%s", err, &out)
			case test.want != nil && fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", *test.want):
				t.Errorf("got %+v, want %+v:\n%s", *got, *test.want, &out)
			}
			if test.token != "" && strings.Contains(out.String(), test.token) {
				t.Errorf("the token is shown:\n%s", &out)
			}
		})
	}
}

func TestSetupQR(t *testing.T) {
	said, _, err := setUp(t, "--relay=203.0.113.5", "--web=none", "--qr")
	if err != nil {
		t.Fatal(err)
	}
	if _, code, ok := strings.Cut(said, "for a WireGuard app:\n\n"); !ok || strings.Count(code, "█") < 500 {
		t.Errorf("there is no QR code:\n%s", said)
	}
}

// execute runs a command and returns what it prints.
func execute(cmd *cobra.Command, arguments ...string) (string, error) {
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(arguments)
	err := cmd.Execute()
	return out.String(), err
}
