// Package services runs what a home offers to the world, and what the world
// uses to reach it: Apache, OpenSSH, syslog-ng and rsyslog as they are, and
// small servers in Go where a test must know every byte.
package services

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// Echo answers every byte of TCP connections, and every datagram, with
// itself. Its addresses are as for net.Listen; an empty one is left out.
func Echo(t testing.TB, namespace *testnet.Namespace, tcp, udp string) {
	t.Helper()
	if tcp != "" {
		Serve(t, namespace, tcp, func(conn net.Conn) { io.Copy(conn, conn) })
	}
	if udp != "" {
		socket := namespace.ListenPacket(t, "udp", udp)
		go func() {
			buffer := make([]byte, 1<<16)
			for {
				n, from, err := socket.ReadFromUDPAddrPort(buffer)
				if err != nil {
					return
				}
				socket.WriteToUDPAddrPort(buffer[:n], from)
			}
		}()
	}
}

// Serve calls handle with each connection to address, in a goroutine of its
// own, and closes the connection afterwards. At the end of the test it closes
// what is still open and waits.
func Serve(t testing.TB, namespace *testnet.Namespace, address string, handle func(net.Conn)) net.Listener {
	t.Helper()
	listener := namespace.Listen(t, "tcp", address)
	var (
		mu      sync.Mutex
		open    = make(map[net.Conn]bool)
		serving sync.WaitGroup
	)
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			serving.Go(func() {
				handle(conn)
				conn.Close()
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return listener
}

// Hasher is a service for bulk transfers over raw TCP: it reads an upload
// until the client shuts down its side, answers with the hash and size of
// what came in a line, then sends a Stream of its own and closes.
func Hasher(t testing.TB, namespace *testnet.Namespace, address string, seed byte, size int64) {
	t.Helper()
	Serve(t, namespace, address, func(conn net.Conn) {
		sum, received, err := SumReader(conn)
		if err != nil {
			return // the client sees the missing answer
		}
		fmt.Fprintf(conn, "%s %d\n", sum, received)
		io.Copy(conn, NewStream(seed, size))
	})
}
