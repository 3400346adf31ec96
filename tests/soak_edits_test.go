package tests

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func (s *soak) mustLoad(r *testnet.Relay, text string) {
	s.t.Helper()
	if err := r.Load(s.t, text); err != nil {
		s.t.Fatalf("reloading after %q: %v", s.load.fault, err)
	}
}

// reload loads an edited Caddyfile, and later the usual one.
func (s *soak) reload(old, edited string) (mend func()) {
	s.mustLoad(s.relay, replace(s.t, s.relayText, old, edited))
	return func() { s.mustLoad(s.relay, s.relayText) }
}

func (s *soak) reloadPeer() (mend func()) {
	return s.reload("		peer home {", fmt.Sprintf(`		peer office {
			public_key %s
			allowed_ips 10.77.0.9/32
			endpoint 203.0.113.77:51820
			persistent_keepalive 25s
		}
		peer home {`, testnet.NewKey(s.t).Public))
}

func (s *soak) reloadService() (mend func()) {
	again := s.reload("	layer4 {\n", "	layer4 {\n"+fmt.Sprintf(l4service, ":7200", "home", "7000"))
	if err := s.echoAnew(s.t.Context(), soakHome{name: "home", echo: "7200"}); err != nil && s.alone {
		s.t.Errorf("a new service: %v", err)
	}
	return func() {
		again()
		if conn, err := s.load.dial(s.t.Context(), "home", "7200"); !errors.Is(err, syscall.ECONNREFUSED) {
			conn.drop()
			s.t.Errorf("a service that is no more: %v", err)
		}
	}
}

func (s *soak) reloadSite() (mend func()) {
	return s.reload("\n# Port 443:", "\nhttp://soak.example.org {\n	respond hello\n}\n\n# Port 443:")
}

func (s *soak) reloadMTU() (mend func()) {
	return s.reload("		listen_port 51820\n", "		listen_port 51820\n		mtu 1300\n")
}

func (s *soak) reloadCabin() (mend func()) {
	const line = "			endpoint " + testnet.Endpoint + ":51820\n"
	edited := replace(s.t, s.cabinText, line, "			allowed_ips 10.77.0.100/32\n"+line)
	s.mustLoad(s.cabin, edited+"http://soak.example.org {\n	bind wireguard/wg0\n	respond hello\n}\n")
	return func() { s.mustLoad(s.cabin, s.cabinText) }
}

// changeHomeKey changes a preshared key, now here first, now there.
func (s *soak) changeHomeKey() (mend func()) {
	key := testnet.NewPresharedKey(s.t)
	s.inAnyOrder(func() {
		s.relay.Secret(s.t, "home.psk", key)
		s.readAnew(s.relay, s.relayText)
	}, func() { s.home.SetPreshared(s.t, key) })
	return nil
}

func (s *soak) changeCabinKey() (mend func()) {
	key := testnet.NewPresharedKey(s.t)
	s.inAnyOrder(func() {
		s.relay.Secret(s.t, "cabin.psk", key)
		s.readAnew(s.relay, s.relayText)
	}, func() {
		s.cabin.Secret(s.t, "relay.psk", key)
		s.readAnew(s.cabin, s.cabinText)
	})
	return nil
}

// readAnew has the files read that a Caddyfile names. Unless told to, Caddy does
// nothing where the Caddyfile is the same.
func (s *soak) readAnew(r *testnet.Relay, text string) {
	s.t.Helper()
	if output, err := r.Reload(s.t, text); err != nil {
		s.t.Fatalf("reloading after %q: %v\n%s", s.load.fault, err, output)
	}
}

func (s *soak) inAnyOrder(steps ...func()) {
	for _, i := range s.random.Perm(len(steps)) {
		steps[i]()
	}
}

// mistake is a change of the relay's Caddyfile that has to be refused.
type mistake struct{ name, old, edited string }

func (s *soak) mistakes() []mistake {
	key := "private_key {file." + s.relay.Folder + "/"
	s.Relay.ListenPacket(s.t, "udp", ":51899")
	s.Relay.Listen(s.t, "tcp", ":7999")
	return []mistake{
		{"syntax", "	layer4 {\n", "	layer4\n"},
		{"missing file", key + "wg0.key", key + "none.key"},
		{"unknown module", "	reverse_proxy https://home {", "	reverse_proxy https://home {\n		lb_policy none_such"},
		{"busy UDP port", "listen_port 51820", "listen_port 51899"},
		{"busy TCP port", "	layer4 {\n", "	layer4 {\n" + fmt.Sprintf(l4service, ":7999", "home", "7000")},
		{"foreign address", "\n# Port 443:", "\nhttp://soak.example.org {\n	bind 192.0.2.99\n	respond hello\n}\n\n# Port 443:"},
	}
}

func (s *soak) refused(m mistake) (mend func()) {
	if err := s.relay.Load(s.t, replace(s.t, s.relayText, m.old, m.edited)); err == nil {
		s.t.Errorf("a Caddyfile was taken, though it is broken: %s", m.name)
	}
	return nil
}

func (s *soak) refusedByCabin() (mend func()) {
	for _, edit := range [][2]string{
		{"		address ", "		adress "},
		{"	bind wireguard/wg0\n", "	bind wireguard/wg1\n"},
	} {
		if err := s.cabin.Load(s.t, replace(s.t, s.cabinText, edit[0], edit[1])); err == nil {
			s.t.Errorf("the cabin has taken a broken Caddyfile: %q", edit[1])
		}
	}
	return nil
}
