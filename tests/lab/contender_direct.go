package lab

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() { register(direct{}) }

// direct is no relay at all but the line itself: the kernel's DNAT on the
// relay and on the router, which no CGN would offer. Nothing can be faster.
type direct struct{}

func (direct) Name() string { return "direct" }

func (direct) Obtain(testing.TB) (string, error) {
	out, err := exec.Command("uname", "-r").Output()
	return "no VPN, two kernel DNATs; Linux " + strings.TrimSpace(string(out)), err
}

func (direct) Start(t testing.TB, w *World) Running {
	t.Helper()
	tcp, udp := testnet.NFTPorts(Ports), testnet.NFTPorts(UDPPorts)
	w.Relay.Sysctl(t, "net.ipv4.ip_forward", "1")
	w.Relay.NFT(t, fmt.Sprintf(`
table ip direct {
	chain in {
		type nat hook prerouting priority dstnat
		tcp dport { %s } dnat to %s
		udp dport { %s } dnat to %s
	}
	chain out {
		type nat hook postrouting priority srcnat
		ip daddr %s masquerade
	}
}`, tcp, testnet.RouterIP, udp, testnet.RouterIP, testnet.RouterIP))
	w.Router.NFT(t, fmt.Sprintf(`
table ip direct {
	chain in {
		type nat hook prerouting priority dstnat
		iifname "eth0" tcp dport { %s } dnat to %s
		iifname "eth0" udp dport { %s } dnat to %s
	}
}
table inet filter {
	chain forward {
		tcp dport { %s } accept
		udp dport { %s } accept
	}
}`, tcp, testnet.HomeLANIP, udp, testnet.HomeLANIP, tcp, udp))
	return Running{}
}
