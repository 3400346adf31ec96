package lab

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func init() { register(new(frp)) }

// frp carries TCP streams and datagrams in streams of one TCP connection that
// home opens.
type frp struct{ folder string }

func (*frp) Name() string { return "frp" }

func (f *frp) Obtain(testing.TB) (versions string, err error) {
	f.folder, err = buildTool("frp", "github.com/fatedier/frp/cmd/frps", "github.com/fatedier/frp/cmd/frpc")
	if err != nil {
		return "", err
	}
	versions, err = builtFrom(filepath.Join(f.folder, "frps"), "github.com/fatedier/frp")
	return "TCP and UDP proxies over TLS and its mux, as by default; " + versions, err
}

// Unable knows that it closes both directions as soon as one has ended.
func (*frp) Unable(need string) string {
	if need == needHalfClose {
		return "the client's half-close ends the answer too"
	}
	return ""
}

func (f *frp) Start(t testing.TB, w *World) Running {
	t.Helper()
	const common = `auth.token = "of a laboratory"
`
	folder := testnet.Folder(t)
	serverConfig := filepath.Join(folder, "frps.toml")
	testnet.WriteFile(t, serverConfig, []byte(common+"bindPort = 7000\n"), 0o600)
	server := testnet.Start(t, "frps", withoutProxy(w.Relay.Command(filepath.Join(f.folder, "frps"), "--config", serverConfig)))
	server.WaitLog(t, 0, "frps started successfully", 10*time.Second)

	var text strings.Builder
	fmt.Fprintf(&text, "%sserverAddr = %q\nserverPort = 7000\n", common, testnet.Endpoint)
	for _, port := range Ports {
		fmt.Fprintf(&text, "[[proxies]]\nname = \"%d\"\ntype = \"tcp\"\nlocalIP = \"127.0.0.1\"\nlocalPort = %d\nremotePort = %d\n", port, port, port)
	}
	for _, port := range UDPPorts {
		fmt.Fprintf(&text, "[[proxies]]\nname = \"udp-%d\"\ntype = \"udp\"\nlocalIP = \"127.0.0.1\"\nlocalPort = %d\nremotePort = %d\n", port, port, port)
	}
	clientConfig := filepath.Join(folder, "frpc.toml")
	testnet.WriteFile(t, clientConfig, []byte(text.String()), 0o600)
	client := testnet.Start(t, "frpc", withoutProxy(w.Home.Command(filepath.Join(f.folder, "frpc"), "--config", clientConfig)))
	for _, port := range Ports {
		client.WaitLog(t, 0, fmt.Sprintf(`\[%d\] start proxy success`, port), 10*time.Second)
	}
	for _, port := range UDPPorts {
		client.WaitLog(t, 0, fmt.Sprintf(`\[udp-%d\] start proxy success`, port), 10*time.Second)
	}
	return Running{Relay: []*testnet.Process{server}, Home: []*testnet.Process{client}}
}
