package lingering

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// pair is a connection with much room for what the server writes, and little for
// what the client has not read.
func pair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		// Before the handshake, which fixes the window's scale.
		return raw.Control(func(fd uintptr) { smallReceiveBuffer(fd) })
	}}
	conn, err := dialer.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client = conn.(*net.TCPConn)
	server, err = ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	server.SetWriteBuffer(1 << 20)
	t.Cleanup(func() { client.Close(); server.Close() })
	client.SetDeadline(time.Now().Add(20 * time.Second))
	return client, server
}

// settled waits until nothing lingers any more, which nobody tells: so it looks now and
// again.
func settled(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); now.Load() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections still linger", now.Load())
		}
	}
}

// Whoever sends while much is on its way to him gets all of it, though the server has
// closed meanwhile.
func TestClose(t *testing.T) {
	client, server := pair(t)
	all := bytes.Repeat([]byte("0123456789abcdef"), 16<<10)
	c := New(server)
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("who was reading got %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("who reads now gets %v", err)
	}
	if _, err := c.Write(all); err == nil {
		t.Error("one can write")
	}
	var got []byte
	buf := make([]byte, 8<<10)
	for {
		// As HTTP/2 does for what it has read.
		if _, err := client.Write([]byte("more, please")); err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		n, err := client.Read(buf)
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
	}
	if !bytes.Equal(got, all) {
		t.Errorf("got %d bytes, want %d", len(got), len(all))
	}
	client.Close()
	settled(t)
}

// Who has everything is not lingered for, nor who is to be reset, and a second Close
// ends it.
func TestCloseAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name  string
		close func(*Conn)
		much  bool
		want  error
	}{
		{"all has arrived", func(c *Conn) { c.Close() }, false, io.EOF},
		{"reset", func(c *Conn) { c.SetLinger(0); c.Close() }, true, syscall.ECONNRESET},
		{"reset while it lingers", func(c *Conn) { c.Close(); c.SetLinger(0); c.Close() }, true, syscall.ECONNRESET},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := pair(t)
			c := New(server)
			if tt.much {
				if _, err := c.Write(make([]byte, 256<<10)); err != nil {
					t.Fatal(err)
				}
			}
			tt.close(c)
			if _, err := io.Copy(io.Discard, client); tt.want == io.EOF && err != nil || tt.want != io.EOF && !errors.Is(err, tt.want) {
				t.Errorf("the client got %v, want %v", err, tt.want)
			}
			if !tt.much && now.Load() != 0 && waiting(server) >= 0 {
				t.Error("it lingers")
			}
			settled(t)
		})
	}
}

// A client that says nothing and takes nothing is not lingered for without end.
func TestSilent(t *testing.T) {
	client, server := pair(t)
	c := New(server)
	if _, err := c.Write([]byte("small")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	settled(t)
	if got, err := io.ReadAll(client); err != nil || string(got) != "small" {
		t.Errorf("got %q, %v", got, err)
	}
}
