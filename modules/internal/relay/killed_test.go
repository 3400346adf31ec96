package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// killedEnv makes the test's program one that relays one connection, to the address
// that it names, and has it there to be killed.
const killedEnv = "HOMEWARD_TEST_RELAY_TO"

func init() {
	upstream := os.Getenv(killedEnv)
	if upstream == "" {
		return
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(ln.Addr())
	client, err := ln.Accept()
	if err != nil {
		panic(err)
	}
	up, err := net.Dial("tcp", upstream)
	if err != nil {
		panic(err)
	}
	NewStream(client.(*net.TCPConn), up.(*net.TCPConn), 0).Run()
	os.Exit(0)
}

// TestKilled kills a process that relays: neither side may take what it got until
// then for all there is, not even the one that has ended its own direction.
func TestKilled(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there the system resets what a process leaves behind")
	}
	for _, tt := range []struct {
		name   string
		before func(t *testing.T, client, upstream *net.TCPConn)
	}{
		{"both open", func(*testing.T, *net.TCPConn, *net.TCPConn) {}},
		{"client has ended", func(t *testing.T, client, upstream *net.TCPConn) {
			if err := client.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := receiveEnd(t, upstream); err != io.EOF {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer home.Close()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), killedEnv+"="+home.Addr().String())
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			var address string
			if _, err := fmt.Fscan(out, &address); err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			client := conn.(*net.TCPConn)
			defer client.Close()
			conn, err = home.Accept()
			if err != nil {
				t.Fatal(err)
			}
			upstream := conn.(*net.TCPConn)
			defer upstream.Close()
			for _, c := range []*net.TCPConn{client, upstream} {
				c.SetDeadline(time.Now().Add(20 * time.Second))
			}
			send(t, client, "question")
			receive(t, upstream, "question")
			send(t, upstream, "half of an answ")
			receive(t, client, "half of an answ")
			tt.before(t, client, upstream)

			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := receiveEnd(t, client); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client got %v, want a reset", err)
			}
			if tt.name != "both open" {
				return // the upstream has seen the end that there was
			}
			if err := receiveEnd(t, upstream); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the upstream got %v, want a reset", err)
			}
		})
	}
}
