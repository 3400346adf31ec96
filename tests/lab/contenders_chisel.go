package lab

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() { register(new(chisel)) }

// chisel carries TCP streams and datagrams in channels of one SSH connection
// in a websocket, which home opens.
type chisel struct{ program string }

func (*chisel) Name() string { return "chisel" }

func (c *chisel) Obtain(testing.TB) (versions string, err error) {
	folder, err := buildTool("chisel", "github.com/jpillora/chisel")
	if err != nil {
		return "", err
	}
	c.program = filepath.Join(folder, "chisel")
	versions, err = builtFrom(c.program, "github.com/jpillora/chisel")
	return "reverse tunnel, SSH over a websocket without TLS, as by default; " + versions, err
}

// Unable knows that it closes both directions as soon as one has ended.
func (*chisel) Unable(need string) string {
	if need == needHalfClose {
		return "the client's half-close ends the answer too"
	}
	return ""
}

func (c *chisel) Start(t testing.TB, w *World) Running {
	t.Helper()
	const login = "home:laboratory"
	server := testnet.Start(t, "the relay's chisel", withoutProxy(w.Relay.Command(c.program,
		"server", "--port", "8080", "--reverse", "--auth", login)))
	server.WaitLog(t, 0, "Listening on", 10*time.Second)
	args := []string{"client", "--auth", login, "http://" + testnet.Endpoint + ":8080"}
	for _, port := range Ports {
		args = append(args, fmt.Sprintf("R:0.0.0.0:%d:127.0.0.1:%d", port, port))
	}
	for _, port := range UDPPorts {
		args = append(args, fmt.Sprintf("R:0.0.0.0:%d:127.0.0.1:%d/udp", port, port))
	}
	client := testnet.Start(t, "home's chisel", withoutProxy(w.Home.Command(c.program, args...)))
	client.WaitLog(t, 0, `Connected \(`, 10*time.Second)
	return Running{Relay: []*testnet.Process{server}, Home: []*testnet.Process{client}}
}
