package lingering

import (
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A connection goes to another if its owner has read and then done nothing.
func TestOnUnanswered(t *testing.T) {
	const request = "GET / HTTP/1.1\r\n\r\n"
	read := func(t *testing.T, c *Conn) {
		t.Helper()
		if _, err := io.ReadFull(c, make([]byte, len(request))); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		do   func(*testing.T, *Conn)
		want bool // that it is offered
	}{
		{"nothing", func(*testing.T, *Conn) {}, false},
		{"read", read, true},
		{"read in parts", func(t *testing.T, c *Conn) {
			for range request {
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
		}, true},
		{"written", func(t *testing.T, c *Conn) { read(t, c); c.Write([]byte("HTTP/1.1 200 OK\r\n")) }, false},
		{"copied", func(t *testing.T, c *Conn) { read(t, c); c.ReadFrom(strings.NewReader("HTTP/1.1 200 OK\r\n")) }, false},
		{"half closed", func(t *testing.T, c *Conn) { read(t, c); c.CloseWrite() }, false},
		{"to be reset", func(t *testing.T, c *Conn) { read(t, c); c.SetLinger(0) }, false},
		{"spliced", func(t *testing.T, c *Conn) { read(t, c); c.NetConn() }, false},
		{"failed", func(t *testing.T, c *Conn) {
			read(t, c)
			c.SetReadDeadline(time.Unix(1, 0))
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("no timeout")
			}
		}, false},
		{"asked for more", func(t *testing.T, c *Conn) {
			// As net/http does while a handler runs.
			read(t, c)
			begin := c.begin.Load()
			go c.Read(make([]byte, 1))
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
				begin.mu.Lock()
				asks := begin.asks
				begin.mu.Unlock()
				if asks {
					return
				}
				if time.Now().After(deadline) {
					t.Fatal("nobody reads")
				}
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := pair(t)
			if _, err := client.Write([]byte(request)); err != nil {
				t.Fatal(err)
			}
			offered := false
			c := New(server)
			c.OnUnanswered(func(_ Socket, read []byte) bool {
				offered = true
				if string(read) != request {
					t.Errorf("read %q", read)
				}
				return false
			})
			tt.do(t, c)
			c.Close()
			if offered != tt.want {
				t.Errorf("offered: %v", offered)
			}
			if _, err := c.Socket.Write([]byte("x")); err == nil {
				t.Error("the socket is open")
			}
			client.Close()
		})
	}
	settled(t)
}

// A longer beginning than a request has is not kept.
func TestOnUnansweredLong(t *testing.T) {
	client, server := pair(t)
	c := New(server)
	c.OnUnanswered(func(Socket, []byte) bool {
		t.Error("it is offered")
		return false
	})
	go func() {
		client.Write(make([]byte, longestBeginning+1))
	}()
	if _, err := io.ReadFull(c, make([]byte, longestBeginning+1)); err != nil {
		t.Fatal(err)
	}
	if c.begin.Load() != nil {
		t.Error("what was read is kept")
	}
	c.Close()
	client.Close()
	settled(t)
}

// The next owner reads all from the beginning, and answers; the last one can do nothing
// to the connection any more.
func TestAgain(t *testing.T) {
	client, server := pair(t)
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	var next *Conn
	take := func(socket Socket, read []byte) bool {
		next = New(Again(socket, read))
		return true
	}
	last := New(server)
	last.SetReadDeadline(time.Now().Add(time.Hour))
	for range 2 { // It may come to that twice.
		last.OnUnanswered(take)
		if _, err := io.ReadFull(last, make([]byte, len("question"))); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := last.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := last.Read(make([]byte, 1)); err == nil {
			t.Errorf("the last owner has read %d bytes", n)
		}
		if _, err := last.Write([]byte("no")); err == nil {
			t.Error("the last owner has written")
		}
		for name, err := range map[string]error{
			"SetReadDeadline":  last.SetReadDeadline(time.Unix(1, 0)),
			"SetWriteDeadline": last.SetWriteDeadline(time.Unix(1, 0)),
			"SetDeadline":      last.SetDeadline(time.Unix(1, 0)),
			"CloseWrite":       last.CloseWrite(),
			"SetLinger":        last.SetLinger(0),
		} {
			if err == nil {
				t.Errorf("the last owner can do %s", name)
			}
		}
		last = next
	}
	if _, spliced := next.NetConn().(*net.TCPConn); spliced {
		t.Error("who reads from the socket itself would miss what has been read")
	}
	if _, err := client.Write([]byte("s")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("questions"))
	if _, err := io.ReadFull(next, got); err != nil || string(got) != "questions" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := next.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if got := waiting(next.Socket); runtime.GOOS == "linux" && got < 0 {
		t.Error("whether all has arrived is not known, so it lingers for long")
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(client); err != nil || string(all) != "answer" {
		t.Errorf("%q, %v", all, err)
	}
	client.Close()
	settled(t)
}
