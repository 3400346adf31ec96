package lab

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() { register(fastd{}) }

// fastd is what the user of this project had: a VPN of one thread at each
// end, and on the relay the kernel's DNAT, and Apache as reverse proxy for
// HTTPS.
type fastd struct{}

func (fastd) Name() string { return "fastd" }

func (fastd) Obtain(testing.TB) (string, error) {
	version, err := install("fastd")
	if err != nil {
		return "", err
	}
	apache, err := installFrom("apache2-bin", apacheProgram)
	return "salsa2012+umac, MTU 1426, nft DNAT and masquerade, Apache for HTTPS, whose memory counts too; " + version + ", " + apache, err
}

func (fastd) Start(t testing.TB, w *World) Running {
	t.Helper()
	relayKey, homeKey := fastdKey(t, w.Relay), fastdKey(t, w.Home)
	relay := startFastd(t, w.Relay, testnet.RelayTunnelIP, fmt.Sprintf(`
bind 0.0.0.0:10000;
secret "%s";
peer "home" { key "%s"; }
`, relayKey.secret, homeKey.public))
	w.Relay.ForwardHome(t, fastdTUN, plainPorts(), UDPPorts)
	apache := startApache(t, w)
	home := startFastd(t, w.Home, testnet.HomeTunnelIP, fmt.Sprintf(`
secret "%s";
peer "relay" {
	key "%s";
	remote ipv4 "%s":10000;
}
`, homeKey.secret, relayKey.public, testnet.Endpoint))
	home.WaitLog(t, 0, "connection with .* established", 15*time.Second)
	return Running{Relay: []*testnet.Process{relay, apache}, Home: []*testnet.Process{home}}
}

// fastdTUN is the name of the interface at both ends.
const fastdTUN = "fastd0"

// startFastd runs fastd with an address in the tunnel. Its documentation's
// MTU of 1426 fits a DSL line's path too.
func startFastd(t testing.TB, namespace *testnet.Namespace, address, rest string) *testnet.Process {
	t.Helper()
	config := filepath.Join(testnet.Folder(t), "fastd.conf")
	testnet.WriteFile(t, config, fmt.Appendf(nil, `log level info;
mode tun;
interface "%s";
mtu 1426;
method "salsa2012+umac";
on up "ip addr add %s/24 dev %s && ip link set %s up";
%s`, fastdTUN, address, fastdTUN, fastdTUN, rest), 0o600)
	return testnet.Start(t, "fastd", namespace.Command("fastd", "--config", config))
}

type fastdKeys struct{ secret, public string }

// fastdKey has fastd make a key pair.
func fastdKey(t testing.TB, namespace *testnet.Namespace) (keys fastdKeys) {
	t.Helper()
	const form = "Secret: %s\nPublic: %s"
	out := namespace.Output(t, "fastd", "--generate-key")
	if _, err := fmt.Sscanf(out, form, &keys.secret, &keys.public); err != nil {
		t.Fatalf("reading fastd's keys: %v", err)
	}
	return keys
}
