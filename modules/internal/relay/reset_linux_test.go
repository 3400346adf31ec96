package relay

import (
	"io"
	"net"
	"testing"
	"time"
)

// One side is reset while all buffers on the way to the other are full: nothing
// has to be read or written for the Stream to end.
func TestStreamResetWhileFull(t *testing.T) { overPaths(t, testStreamResetWhileFull) }

func testStreamResetWhileFull(t *testing.T, p path) {
	if p.name == "opaque" {
		t.Skip("only sockets of a kernel are watched")
	}
	for _, tt := range []struct {
		name string
		ends func(client, upstream *net.TCPConn) (sender, receiver *net.TCPConn)
		want Reason
	}{
		{"by the client", func(c, u *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return c, u }, ClientReset},
		{"by the upstream", func(c, u *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return u, c }, UpstreamReset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, upstream, _, result := p.relayed(t, 0)
			sender, receiver := tt.ends(client, upstream)
			for {
				_ = sender.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err := sender.Write(make([]byte, 64<<10)); err != nil {
					break
				}
			}
			_ = sender.SetLinger(0)
			sender.Close()
			if got := wait(t, result); got.Reason != tt.want {
				t.Errorf("it ended with %q, want %q", got.Reason, tt.want)
			}
			if n, err := io.Copy(io.Discard, receiver); err == nil {
				t.Errorf("after %d bytes the receiver saw an orderly end", n)
			}
		})
	}
}
