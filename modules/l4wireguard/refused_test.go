package l4wireguard

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// A configuration that is refused because one of its addresses is taken serves
// nobody at the others, which are also those of the configuration that goes on.
func TestRefusedReloadServesNobody(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	w.serveUDP(7, echoDatagram)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	tcp, udp := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "udp")
	const server = "%s {\nroute {\nwireguard home:7\n}\n}\n"
	good := fmt.Sprintf(server, "127.0.0.1:$1") + fmt.Sprintf(server, "udp/127.0.0.1:$2")
	w.load(good, tcp, udp)
	begun := w.dialUDP(udp)
	mustExchange(t, begun, "before", "before")

	// Servers start in any order.
	for range 10 {
		if err := w.tryLoad(good+fmt.Sprintf(server, "127.0.0.1:$3"), tcp, udp, busy.Addr().(*net.TCPAddr).Port); err == nil || !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
			t.Fatalf("loaded with a port that is taken: %v", err)
		}
	}
	mustExchange(t, begun, "after", "after")
	for range 20 {
		mustExchange(t, w.dialUDP(udp), "after", "after")
		mustEcho(t, w.dial(tcp), "after")
	}

	w.load(fmt.Sprintf(server, "udp/127.0.0.1:$2"), tcp, udp)
	for range 20 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", tcp))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("a service that is no more was dialed: %v, %v", c, err)
		}
	}
}
