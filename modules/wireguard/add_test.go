package wireguard

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// relayCaddyfile writes a relay's Caddyfile with two homes, and its key.
func relayCaddyfile(t *testing.T) (path string) {
	t.Helper()
	folder := t.TempDir()
	path = filepath.Join(folder, "Caddyfile")
	caddyfile := fmt.Sprintf(`{
	wireguard {
		private_key {file.%s/wg0.key}
		address 10.77.0.1/24 fd77::1/64
		peer home {
			public_key %s
			allowed_ips 10.77.0.2/32 fd77::2/128
		}
		peer cabin {
			public_key %s
			allowed_ips 10.77.0.3/32 192.168.178.0/24
		}
	}
	layer4 {
		:2022 tcp/:6514-6516 {
			route {
				echo
			}
		}
		udp/:19132 wireguard/wg0:7000 {
			route {
				echo
			}
		}
	}
}
example.org {
	respond ok
}
`, folder, tunnel.NewPrivateKey().Public(), tunnel.NewPrivateKey().Public())
	for name, content := range map[string]string{"Caddyfile": caddyfile, "wg0.key": tunnel.NewPrivateKey().Base64()} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestAddService(t *testing.T) {
	path := relayCaddyfile(t)
	for _, test := range []struct {
		arguments []string
		want      string // of what is said, or of the error
		ok        bool
	}{
		{[]string{"2222:22", "--peer", "home"}, "\t\t:2222 {\n\t\t\troute {\n\t\t\t\twireguard home:22\n", true},
		{[]string{"2222:22", "--peer", "home", "--transparent"}, "wireguard home:22 {\n\t\t\t\t\ttransparent\n", true},
		{[]string{"7000", "--peer", "cabin"}, "wireguard/wg0:7000 {", true},
		{[]string{"6514/udp", "--peer", "cabin"}, "udp/:6514 {", true},
		{[]string{"2222:22"}, "several peers (cabin, home)", false},
		{[]string{"2222:22", "--peer", "nobody"}, "no peer nobody", false},
		{[]string{"2022:22", "--peer", "home"}, "TCP port 2022 is taken", false},
		{[]string{"6500-6514", "--peer", "home"}, "TCP port 6514-6516 is taken", false},
		{[]string{"19132/udp", "--peer", "home"}, "UDP port 19132 is taken", false},
		{[]string{"443/udp", "--peer", "home"}, "UDP port 443 is taken", false},
		{[]string{"80", "--peer", "home"}, "TCP port 80 is taken", false},
		{[]string{"51820/udp", "--peer", "home"}, "UDP port 51820 is taken", false},
		{[]string{"25", "--peer", "home"}, "whole internet", false},
		{[]string{"x", "--peer", "home"}, "no port", false},
		{[]string{"1", "--config", path + ".none"}, "caddy wireguard setup", false},
	} {
		t.Run(strings.Join(test.arguments, " "), func(t *testing.T) {
			said, err := execute(addServiceCommand(), append([]string{"--config", path}, test.arguments...)...)
			if err != nil {
				said = err.Error()
			}
			if (err == nil) != test.ok || !strings.Contains(said, test.want) {
				t.Errorf("got %v\n%s\nwant %q", err, said, test.want)
			}
		})
	}
}

func TestAddPeer(t *testing.T) {
	path := relayCaddyfile(t)
	folder := filepath.Dir(path)
	add := func(arguments ...string) (string, error) {
		return execute(addPeerCommand(), append([]string{"--config", path, "--user", "root"}, arguments...)...)
	}
	for _, test := range []struct {
		arguments []string
		want      string
	}{
		{[]string{"home", "--relay", "203.0.113.5"}, "has a peer home already"},
		{[]string{"7", "--relay", "203.0.113.5"}, "cannot be called"},
		{[]string{"../x", "--relay", "203.0.113.5"}, "cannot be called"},
		{[]string{"phone"}, "--relay"},
		{[]string{"phone", "--relay", "203.0.113.5", "--tunnel", "wg1"}, "no tunnel wg1"},
		{[]string{"parents", "--relay", "vm.example.org", "--fritzbox", "192.168.178.1/24", "--server", "192.168.178.20"}, "192.168.178.0/24"},
	} {
		if said, err := add(test.arguments...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v\n%s\nwant an error with %q", test.arguments, err, said, test.want)
		}
	}
	if got := filesIn(t, folder); !slices.Equal(got, []string{"Caddyfile", "wg0.key"}) {
		t.Errorf("something has been written: %q", got)
	}

	said, err := add("phone", "--relay", "vm.example.org")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"Caddyfile", "phone/Caddyfile", "phone/wg0-relay.psk", "phone/wg0.conf", "phone/wg0.key", "wg0-phone.psk", "wg0.key"}; !slices.Equal(filesIn(t, folder), want) {
		t.Errorf("there are %q, want %q", filesIn(t, folder), want)
	}
	for _, want := range []string{
		"preshared_key {file." + folder + "/wg0-phone.psk}",
		"allowed_ips 10.77.0.4/32 fd77::3/128\n",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in\n%s", want, said)
		}
	}
	conf := readText(t, folder, "phone/wg0.conf")
	for _, want := range []string{"Address = 10.77.0.4/24, fd77::3/64", "AllowedIPs = 10.77.0.1/32, fd77::1/128", "Endpoint = vm.example.org:51820"} {
		if !strings.Contains(conf, want) {
			t.Errorf("no %q in\n%s", want, conf)
		}
	}
	if _, err := add("phone", "--relay", "vm.example.org"); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("the same again: %v", err)
	}
	if after := readText(t, folder, "phone/wg0.conf"); after != conf {
		t.Error("the first one has been changed")
	}
}
