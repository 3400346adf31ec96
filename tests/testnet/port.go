package testnet

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// Ports for FreePort are below those that Linux gives to outgoing connections
// (ip_local_port_range), of which any may be taken at any moment.
const (
	firstPort = 10_000
	portCount = 20_000
)

var portsTried atomic.Int64

// FreePort returns a port of the host that nobody has, for network tcp or udp.
// Test processes that run side by side begin at different places, and no port
// is returned twice.
func FreePort(t testing.TB, network string) int {
	t.Helper()
	for range portCount {
		port := firstPort + int((int64(os.Getpid())*7919+portsTried.Add(1))%portCount)
		if free(network, port) {
			return port
		}
	}
	t.Fatalf("no free port for %s", network)
	return 0
}

func free(network string, port int) bool {
	address := ":" + strconv.Itoa(port)
	var config net.ListenConfig
	if strings.HasPrefix(network, "udp") {
		conn, err := config.ListenPacket(context.Background(), network, address)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}
	listener, err := config.Listen(context.Background(), network, address)
	if err != nil {
		return false
	}
	return listener.Close() == nil
}
