package tests

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestReloadStorm reloads a relay again and again that is in full use. With
// HOMEWARD_LAB=1 it does so a thousand times and moves a gibibyte meanwhile.
func TestReloadStorm(t *testing.T) {
	reloads, transfer := 100, int64(128<<20)
	if os.Getenv("HOMEWARD_LAB") != "" {
		reloads, transfer = 1000, 1<<30
	}
	const (
		connections = 200
		flows       = 50
		sockets     = 5
		between     = 10 // reloads between two looks at everything
	)
	keys := testnet.NewTunnelKeys(t)
	keys.Preshared = testnet.NewPresharedKey(t)
	w := newWorldWith(t, keys)
	w.relay.UseBinary(testnet.FastCaddy(t))
	services.StartApache(t, w.Home, w.private)
	services.WebSocketEcho(t, w.Home, "127.0.0.1:8081")
	services.Echo(t, w.Home, ":7000", ":19132")
	services.Hasher(t, w.Home, ":7001", 1, 0)
	text := replace(t, w.example(t), "		:2022 {", `		:7000 {
			route {
				wireguard home:7000
			}
		}
		:7001 {
			route {
				wireguard home:7001
			}
		}
		udp/:19132 {
			route {
				wireguard home:19132
			}
		}
		:2022 {`)
	text = replace(t, text, "public_key "+keys.Home.Public, "public_key "+keys.Home.Public+"\n			preshared_key {file."+w.relay.Folder+"/home.psk}")
	w.Relay.Sysctl(t, "net.ipv4.tcp_migrate_req", "1") // see TestReload
	w.start(t, text)

	type user struct {
		name string
		echo func(string) error
	}
	var users []user
	for n := range connections {
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		lines := bufio.NewReader(conn)
		users = append(users, user{fmt.Sprint("connection ", n), func(text string) error { return echoLine(conn, lines, text) }})
	}
	for n := range flows {
		users = append(users, user{fmt.Sprint("flow ", n), w.dialUDP(t).echo})
	}
	for n := range sockets {
		users = append(users, user{fmt.Sprint("WebSocket ", n), openWebSocket(t, w).echo})
	}
	use := func(when string) (lost int) {
		for _, user := range users {
			if err := user.echo(when); err != nil {
				t.Errorf("%s, %s: %v", user.name, when, err)
				lost++
			}
		}
		return lost
	}
	upload := startUpload(t, w, transfer)
	if use("before") > 0 {
		t.FailNow()
	}
	before, heap, rss := settle(t, w.relay), heapInUse(t, w.relay), w.relay.RSS(t)

	lost, refused := 0, 0
	begin := time.Now()
	for n := range reloads {
		edited, bad := edit(t, w, text, n)
		switch err := w.relay.Load(t, edited); {
		case err != nil && !bad:
			t.Fatalf("reload %d: %v", n, err)
		case err == nil && bad:
			t.Fatalf("reload %d was taken, though it is broken", n)
		case bad:
			refused++
		}
		if n%between == between-1 {
			lost += use(fmt.Sprint("after reload ", n))
		}
		if lost > 10 {
			t.FailNow()
		}
	}
	took := time.Since(begin)
	if err := w.relay.Load(t, text); err != nil {
		t.Fatal(err)
	}
	size := upload.finish(t)
	lost += use("at the end")
	before.expectAgain(t, w.relay)
	after := heapInUse(t, w.relay)
	if after > heap+heapMore {
		t.Errorf("the heap is %d MiB, before %d MiB", after>>20, heap>>20)
	}
	figure(t, "%d reloads in %.0f s (%d of them refused) under %d TCP connections, %d UDP flows, %d WebSockets and an upload of %d MiB: %d dropped; heap %d MiB before and %d MiB after, memory of the process %d and %d MiB.",
		reloads, took.Seconds(), refused, connections, flows, sockets, size>>20, lost, heap>>20, after>>20, rss>>20, w.relay.RSS(t)>>20)
}

// echoLine says a line on a connection that goes on afterwards.
func echoLine(conn net.Conn, lines *bufio.Reader, text string) error {
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintln(conn, text); err != nil {
		return err
	}
	got, err := lines.ReadString('\n')
	if err == nil && got != text+"\n" {
		err = fmt.Errorf("got %q, sent %q", got, text)
	}
	return err
}

// edit is what somebody may change in a Caddyfile, the nth time. It says whether
// the change is a mistake.
func edit(t *testing.T, w *world, text string, n int) (edited string, bad bool) {
	t.Helper()
	switch n % 6 {
	case 0: // a site
		return text + fmt.Sprintf("\nhttp://site%d.example.org {\n	respond hello\n}\n", n), false
	case 1: // a service
		return replace(t, text, "		:7000 {", fmt.Sprintf("		:%d {\n			route {\n				wireguard home:7000\n			}\n		}\n		:7000 {", 7100+n%50)), false
	case 2: // a peer
		return replace(t, text, "		peer home {", fmt.Sprintf("		peer office {\n			public_key %s\n			allowed_ips 10.77.0.9/32\n		}\n		peer home {", testnet.NewTunnelKeys(t).Home.Public)), false
	case 3: // another preshared key, at both ends
		preshared := testnet.NewPresharedKey(t)
		w.relay.Secret(t, "home.psk", preshared)
		w.home.SetPreshared(t, preshared)
		return text, false
	case 4: // a mistake that is found at once
		return replace(t, text, "		peer home {", "		per home {"), true
	}
	// One that is found when everything else has been started.
	return text + "\nhttp://broken.example.org {\n	bind 192.0.2.99\n	respond hello\n}\n", true
}

// upload is a transfer that goes on until it is finished.
type upload struct {
	conn net.Conn
	stop atomic.Bool
	done chan error
	sum  *services.Digest
	size int64
}

// startUpload sends at least so many bytes to home's Hasher.
func startUpload(t *testing.T, w *world, least int64) *upload {
	t.Helper()
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7001")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	u := &upload{conn: conn, done: make(chan error, 1), sum: services.NewDigest()}
	go func() {
		stream := services.NewStream(9, 1<<50)
		piece := make([]byte, 256<<10)
		for u.size < least || !u.stop.Load() {
			n, err := stream.Read(piece)
			if err == nil {
				_, err = conn.Write(piece[:n])
			}
			if err != nil {
				u.done <- err
				return
			}
			u.sum.Write(piece[:n])
			u.size += int64(n)
			// Others want to be served as well.
			time.Sleep(5 * time.Millisecond)
		}
		u.done <- conn.(*net.TCPConn).CloseWrite()
	}()
	return u
}

// finish ends the upload, checks that home has every byte, and returns how many
// there were.
func (u *upload) finish(t *testing.T) int64 {
	t.Helper()
	u.stop.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	select {
	case err := <-u.done:
		if err != nil {
			t.Fatalf("uploading: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the upload does not end")
	}
	u.conn.SetReadDeadline(time.Now().Add(time.Minute))
	answer, err := bufio.NewReader(u.conn).ReadString('\n')
	if want := fmt.Sprintf("%s %d", u.sum.Sum(), u.size); err != nil || strings.TrimSpace(answer) != want {
		t.Errorf("home has %q (%v), sent was %q", answer, err, want)
	}
	return u.size
}
