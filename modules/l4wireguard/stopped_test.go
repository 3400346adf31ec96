package l4wireguard

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// Of the clients of a server that a reload has stopped nothing stays behind,
// whether they go on or not.
func TestReloadsLeaveNoUDPClientBehind(t *testing.T) {
	w := newWorld(t)
	w.serveUDP(7, echoDatagram)
	port := testnet.FreePort(t, "udp")
	const servers = "udp/127.0.0.1:$1 {\nroute {\nwireguard home:7 {\nidle_timeout %ds\n}\n}\n}"
	w.load(fmt.Sprintf(servers, 60), port)
	var clients []*net.UDPConn
	for n := range 40 {
		clients = append(clients, w.dialUDP(port))
		mustExchange(t, clients[n], "up", "up")
	}
	for n := range 5 {
		w.load(fmt.Sprintf(servers, 61+n), port)
		for i, client := range clients {
			text := fmt.Sprintf("client %d after reload %d", i, n)
			mustExchange(t, client, text, text)
		}
	}
	var stacks string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		buf := make([]byte, 16<<20)
		stacks = string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(stacks, "packetConn).Close") {
			return
		}
	}
	t.Errorf("%d connections are still being closed", strings.Count(stacks, "packetConn).Close("))
}
