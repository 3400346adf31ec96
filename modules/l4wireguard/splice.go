package l4wireguard

import (
	"net"
	"syscall"

	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/lingering"
	"github.com/homeward-relay/homeward/modules/internal/relay"
)

// SpliceFrom returns the client's socket if there is nothing between it and
// the connection. It is not ready while the connection has bytes that matchers
// have read.
//
// A connection that has had a PROXY protocol header is never spliced: bytes
// may be waiting in go-proxyproto's buffer, and it does not tell.
func (c *client) SpliceFrom() (socket syscall.RawConn, ready bool) {
	return c.socket(), len(c.MatchingBytes()) == 0
}

// SpliceTo returns the client's socket if there is nothing between it and the
// connection.
func (c *client) SpliceTo() syscall.RawConn { return c.socket() }

// socket looks for nothing but a *net.TCPConn itself, which may linger: whatever else
// has one (throttle, tee) may do more in its Read and Write.
func (c *client) socket() syscall.RawConn {
	conn := c.Conn
	if lingers, ok := conn.(*lingering.Conn); ok {
		conn = lingers.NetConn()
	}
	transport, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	socket, err := transport.SyscallConn()
	if err != nil {
		return nil
	}
	return socket
}

func (c *client) Read(p []byte) (int, error) {
	n, err := c.Connection.Read(p)
	c.read += uint64(n)
	return n, err
}

func (c *client) Write(p []byte) (int, error) {
	n, err := c.Connection.Write(p)
	c.written += uint64(n)
	return n, err
}

// account makes the connection count what has gone past it. caddy-l4 logs its
// counts at debug level when the handler returns, and they can be raised in no
// other way than by reading and writing: here by reads and writes of nothing.
//
// Bytes that were read past the connection and that the upstream did not take,
// at most a pipe full and only of a connection that failed, are not counted.
func (c *client) account(result relay.Result) {
	if !c.Logger.Core().Enabled(zap.DebugLevel) {
		return
	}
	transport := c.Conn
	c.Conn = nothing{transport}
	defer func() { c.Conn = transport }()

	block := relay.Datagrams.Get()
	defer relay.Datagrams.Put(block)
	past := func(total, counted uint64, count func([]byte) (int, error)) {
		for counted < total {
			n, err := count((*block)[:min(total-counted, uint64(len(*block)))])
			if err != nil {
				return
			}
			counted += uint64(n)
		}
	}
	past(result.Sent, c.read, c.Connection.Read)
	past(result.Received, c.written, c.Connection.Write)
}

// nothing is a connection whose reads and writes are all done at once.
type nothing struct{ net.Conn }

func (nothing) Read(p []byte) (int, error)  { return len(p), nil }
func (nothing) Write(p []byte) (int, error) { return len(p), nil }
