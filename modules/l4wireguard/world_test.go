package l4wireguard

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	_ "github.com/mholt/caddy-l4"
	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/gvisor"
	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// world is a relay, which is a Caddy in this process, and a home, which is
// plain wireguard-go on a stack of ours. (Its own netstack panics when it is
// closed under load.) They talk over loopback.
type world struct {
	t      testing.TB
	dir    string
	port   int // the relay's WireGuard port
	home   *device.Device
	relay  tunnel.PublicKey
	inside netstack.Stack
	public string // home's public key
	lines  *logFile

	// allowed are home's allowed IPs at the relay.
	allowed string

	// admin says that the relay has an admin API; see api.
	admin bool

	// homeConfig is what home is told once the relay runs: a handshake that
	// nobody answers is only repeated after 5 s.
	homeConfig string
}

var (
	homeAddr  = netip.MustParseAddr("10.77.0.2")
	homeAddr6 = netip.MustParseAddr("fd77::2")
)

// newWorld makes home ready; load starts the relay, and then home.
func newWorld(t testing.TB) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "l4wireguard")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Unlike t.TempDir's: Caddy may write to its storage after Stop.
		for deadline := time.Now().Add(5 * time.Second); os.RemoveAll(dir) != nil && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
	})
	relayPrivate, homePrivate := tunnel.NewPrivateKey(), tunnel.NewPrivateKey()
	if err := os.WriteFile(filepath.Join(dir, "wg0.key"), []byte(relayPrivate.Base64()), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &world{
		t:      t,
		dir:    dir,
		port:   testnet.FreePort(t, "udp"),
		relay:  relayPrivate.Public(),
		public: publicKey(homePrivate),
		lines:  &logFile{t: t, path: filepath.Join(dir, "relayed.log")},

		allowed: "10.77.0.2/32 fd77::2/128",
	}

	inside, err := gvisor.New(gvisor.Config{
		Name:      "home",
		MTU:       1280,
		Addresses: []netip.Prefix{netip.PrefixFrom(homeAddr, 24), netip.PrefixFrom(homeAddr6, 64)},
		Logger:    zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.inside = inside
	w.home = device.NewDevice(inside.Device(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	w.homeConfig = fmt.Sprintf("private_key=%x\npublic_key=%x\nallowed_ip=10.77.0.1/32\nallowed_ip=fd77::1/128\nendpoint=127.0.0.1:%d\npersistent_keepalive_interval=1\n",
		homePrivate[:], w.relay[:], w.port)
	t.Cleanup(w.home.Close)
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		// Flows outlive a configuration, as they must, but not a test.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := relay.End(ctx, relay.Shutdown); err != nil {
			t.Errorf("%d streams and %d flows are left", relay.Streams.Len(), relay.Flows.Len())
		}
	})
	return w
}

func publicKey(private tunnel.PrivateKey) string {
	public := private.Public()
	raw, _ := hex.DecodeString(fmt.Sprintf("%x", public[:]))
	return base64.StdEncoding.EncodeToString(raw)
}

// load loads a configuration with the given layer4 servers. A server that
// listens on $1 gets the first of ports, and so on.
func (w *world) load(servers string, ports ...int) {
	w.t.Helper()
	if err := w.tryLoad(servers, ports...); err != nil {
		w.t.Fatal(err)
	}
	if w.homeConfig == "" {
		return
	}
	if err := errors.Join(w.home.IpcSet(w.homeConfig), w.home.Up()); err != nil {
		w.t.Fatal(err)
	}
	w.homeConfig = ""
}

func (w *world) tryLoad(servers string, ports ...int) error {
	for i, port := range ports {
		servers = strings.ReplaceAll(servers, fmt.Sprintf("$%d", i+1), fmt.Sprint(port))
	}
	admin := "off"
	if w.admin {
		admin = "unix/" + w.adminSocket()
	}
	caddyfile := fmt.Sprintf(`{
	admin %[6]s
	persist_config off
	storage file_system %[1]s/storage
	log default {
		output discard
	}
	log relayed {
		output file %[1]s/relayed.log
		include layer4.handlers.wireguard
	}
	wireguard wg0 {
		private_key {file.%[1]s/wg0.key}
		address 10.77.0.1/24 fd77::1/64
		listen_port %[2]d
		peer home {
			public_key %[3]s
			allowed_ips %[5]s
		}
	}
	layer4 {
		%[4]s
	}
}`, w.dir, w.port, w.public, servers, w.allowed, admin)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	return caddy.Load(config, true)
}

// serveTCP calls handle for every connection to home's port.
func (w *world) serveTCP(port uint16, handle func(net.Conn)) {
	w.t.Helper()
	ln, err := w.inside.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		w.t.Fatal(err)
	}
	serve(w.t, ln, handle)
}

// serve calls handle for every connection that a listener accepts, until the test
// ends.
func serve(t testing.TB, ln net.Listener, handle func(net.Conn)) {
	t.Helper()
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	})
	t.Cleanup(wait.Wait)
	t.Cleanup(func() { ln.Close() })
}

// echo answers with what it reads, and closes when the client has.
func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// serveUDP answers every datagram to home's port with what answer makes of it
// and of where it came from.
func (w *world) serveUDP(port uint16, answer func(datagram []byte, from net.Addr) []byte) {
	w.t.Helper()
	c, err := w.inside.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		w.t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if out := answer(buf[:n], from); out != nil {
				_, _ = c.WriteTo(out, from)
			}
		}
	})
	w.t.Cleanup(wait.Wait)
	w.t.Cleanup(func() { c.Close() })
}

func echoDatagram(datagram []byte, _ net.Addr) []byte { return datagram }

// dial connects to a port of the relay.
func (w *world) dial(port int) *net.TCPConn {
	w.t.Helper()
	c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// dialUDP is a client of a UDP port of the relay.
func (w *world) dialUDP(port int) *net.UDPConn {
	w.t.Helper()
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// mustEcho sends text and wants it back.
func mustEcho(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if err := echoes(c, text); err != nil {
		t.Fatal(err)
	}
}

func echoes(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	return reads(c, text)
}

func mustRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	if err := reads(c, want); err != nil {
		t.Fatal(err)
	}
}

func reads(c net.Conn, want string) error {
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		return fmt.Errorf("read %.60q, %v; want %.60q", got[:n], err, want)
	}
	return nil
}

// mustExchange sends a datagram until the answer comes, as programs that speak
// UDP do.
func mustExchange(t testing.TB, c *net.UDPConn, text, want string) {
	t.Helper()
	if !exchange(t, c, text, want, 15*time.Second) {
		t.Fatalf("no answer to %.60q", text)
	}
}

func exchange(t testing.TB, c *net.UDPConn, text, want string, within time.Duration) bool {
	t.Helper()
	buf := make([]byte, 64<<10)
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		// An error here is a late ICMP answer.
		_, _ = io.WriteString(c, text)
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		for {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			if string(buf[:n]) == want {
				return true
			}
		}
	}
	return false
}

func mustReset(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

// logFile is the log of connections.
type logFile struct {
	t      testing.TB
	path   string
	offset int64

	skipped []string // what next has passed over
}

// next returns the next line with this message, skipping others.
func (l *logFile) next(message string) map[string]any {
	l.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		file, err := os.Open(l.path)
		if err != nil {
			continue
		}
		_, _ = file.Seek(l.offset, io.SeekStart)
		reader := bufio.NewReader(file)
		for {
			text, err := reader.ReadString('\n')
			if err != nil {
				break
			}
			l.offset += int64(len(text))
			line := make(map[string]any)
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				l.t.Fatalf("%s: %v", text, err)
			}
			if line["msg"] == message {
				file.Close()
				return line
			}
			l.skipped = append(l.skipped, text)
		}
		file.Close()
	}
	l.t.Fatalf("no log line %q, only %s", message, l.skipped)
	return nil
}

// has checks some fields of a log line.
func has(t testing.TB, line map[string]any, want map[string]any) {
	t.Helper()
	for field, value := range want {
		if fmt.Sprint(line[field]) != fmt.Sprint(value) {
			t.Errorf("%s is %v, want %v, in %v", field, line[field], value, line)
		}
	}
}
