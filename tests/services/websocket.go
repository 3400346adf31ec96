package services

import (
	"io"
	"net"
	"net/http"
	"testing"

	"golang.org/x/net/websocket"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// WebSocketEcho answers each WebSocket message (RFC 6455) with itself.
func WebSocketEcho(t testing.TB, namespace *testnet.Namespace, address string) {
	t.Helper()
	listener := namespace.Listen(t, "tcp", address)
	server := &http.Server{Handler: websocket.Server{
		// The zero handshake accepts any origin, as this echo should.
		Handler: func(conn *websocket.Conn) { io.Copy(conn, conn) },
	}}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

// DialWebSocket opens a WebSocket over a connection that is already there:
// TCP for ws, TLS for wss.
func DialWebSocket(conn net.Conn, url string) (*websocket.Conn, error) {
	config, err := websocket.NewConfig(url, url)
	if err != nil {
		return nil, err
	}
	return websocket.NewClient(config, conn)
}
