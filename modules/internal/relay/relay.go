// Package relay moves bytes between two connections and datagrams between two
// flows. It knows nothing of tunnels or of Caddy: whoever calls it brings both
// ends.
//
// A Stream is a relayed TCP connection. A Flow is what UDP has instead of one:
// the datagrams between one client address and one upstream, which live in a
// FlowTable for longer than the call that brought the first of them.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Reason says in a few words why a Stream or a Flow ended. The words are part
// of the log format: tools match them.
type Reason string

const (
	// ClientClosed and UpstreamClosed are orderly ends: both sides closed,
	// the named one first.
	ClientClosed   Reason = "client closed"
	UpstreamClosed Reason = "upstream closed"

	// ClientReset and UpstreamReset: the named side sent RST.
	ClientReset   Reason = "client reset"
	UpstreamReset Reason = "upstream reset"

	// ClientTimedOut and UpstreamTimedOut: the named side no longer answers
	// segments or keepalive probes.
	ClientTimedOut   Reason = "client timed out"
	UpstreamTimedOut Reason = "upstream timed out"

	// ClientFailed and UpstreamFailed: any other error of the named side.
	ClientFailed   Reason = "client failed"
	UpstreamFailed Reason = "upstream failed"

	// Revoked: the tunnel that one side was reached by has closed it, since the
	// peer, the tunnel itself or an address of either end has been taken out of
	// the configuration. (Or since its stack had to be made anew, which is an
	// error in the log.)
	Revoked Reason = "revoked"

	// IdleTimeout: nothing moved either way for the idle timeout.
	IdleTimeout Reason = "idle timeout"

	// Shutdown: the process is ending.
	Shutdown Reason = "shutdown"

	// DialFailed: the upstream of a flow could not be dialed.
	DialFailed Reason = "dial failed"

	// ListenerClosed: the listener that a flow came from is gone and no other
	// has taken the flow over.
	ListenerClosed Reason = "listener closed"

	// Evicted: the flow table was full, and this flow, which was quiet and no
	// conversation, made room for a new one.
	Evicted Reason = "evicted"

	// Replaced: a changed configuration wants the flow another way, and the
	// client's next datagram begins another flow.
	Replaced Reason = "replaced"
)

// Orderly reports whether a connection that ended for this reason ended as
// its two sides wanted it to.
func (r Reason) Orderly() bool { return r == ClientClosed || r == UpstreamClosed }

// Upstream reports whether the upstream is to blame for the end.
func (r Reason) Upstream() bool {
	return r == UpstreamTimedOut || r == UpstreamFailed || r == DialFailed
}

// Conn is one side of a Stream. *net.TCPConn and netstack.TCPConn are Conns.
type Conn interface {
	net.Conn

	// CloseWrite sends FIN. Where a side cannot be closed by half it returns
	// an error that is errors.ErrUnsupported, and is closed as a whole.
	CloseWrite() error

	// SetLinger with 0 makes Close send RST.
	SetLinger(seconds int) error
}

// Spliceable is a Conn around a kernel socket that says when bytes may go past
// it, from socket to socket, without its Read and Write. A Conn that is not
// Spliceable but a syscall.Conn, as *net.TCPConn and what embeds one, may
// always be spliced: its Read and Write must do no more than the socket's.
// Splicing is Linux's; elsewhere nobody asks.
type Spliceable interface {
	Conn

	// SpliceFrom returns the socket that Read reads from, or nil if Read does
	// more than that. While ready is false, Read has bytes of its own to
	// return first: then it is called, and SpliceFrom is asked again. Once
	// ready, it stays so. It is called by the goroutine that calls Read.
	SpliceFrom() (socket syscall.RawConn, ready bool)

	// SpliceTo returns the socket that Write writes to, or nil if Write does
	// more than that. It is called by the goroutine that calls Write.
	SpliceTo() syscall.RawConn
}

// Result is what there is to say about a Stream that has ended.
type Result struct {
	// Sent counts the bytes from the client that the upstream's socket took,
	// Received the bytes from the upstream that the client's took.
	Sent, Received uint64

	// Spliced counts those of them, both ways, that the kernel passed from
	// socket to socket without a copy in this process.
	Spliced uint64

	Duration time.Duration
	Reason   Reason

	// Err is nil after an orderly end, an idle timeout or a shutdown.
	Err error
}

// side is one of the two ends of a Stream, as far as reasons go.
type side struct{ closed, reset, timedOut, failed Reason }

var (
	clientSide   = side{ClientClosed, ClientReset, ClientTimedOut, ClientFailed}
	upstreamSide = side{UpstreamClosed, UpstreamReset, UpstreamTimedOut, UpstreamFailed}
)

// reason puts an error of this side into words.
func (s side) reason(err error) Reason {
	switch {
	case errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNABORTED):
		// Not by this package: it has given another reason then.
		return Revoked
	// EPIPE is what a write says after the RST was already reported by a read.
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return s.reset
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, os.ErrDeadlineExceeded):
		return s.timedOut
	}
	return s.failed
}

// ended reports whether err means that a socket was closed on our own side.
func ended(err error) bool {
	return err != nil && (errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe))
}

// Streams and Flows are all that this process relays. They are process-wide
// because what they hold outlives the configuration that it came from.
var (
	Streams Group
	Flows   FlowTable
)

// End resets all Streams and closes all Flows for the given reason, and waits
// until they have ended or ctx is done. It is for the end of the process, when
// it has to be called while the tunnels still carry packets, so that RSTs
// leave.
func End(ctx context.Context, reason Reason) error {
	told := make(chan struct{})
	go func() {
		defer close(told)
		Flows.Close(reason)
		Streams.Abort(reason)
	}()
	select {
	case <-told:
	case <-ctx.Done():
		// Closing a connection is its own affair, and may take its time.
		return ctx.Err()
	}
	if err := Flows.Wait(ctx); err != nil {
		return err
	}
	return Streams.Wait(ctx)
}
