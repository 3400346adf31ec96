package l4wireguard

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/homeward-relay/homeward/modules/internal/relay"
)

const (
	// cutDatagram is the size of caddy-l4's receive buffers. A datagram that
	// fills one may have been longer, and nothing tells.
	cutDatagram = 9000

	// drainTimeout bounds the wait for the server to let go of a connection
	// that we have closed.
	drainTimeout = time.Second
)

// past is a deadline that is over. caddy-l4 keeps deadlines as Unix seconds.
var past = time.Unix(1, 0)

// errCut means that a datagram was dropped because it may be incomplete.
var errCut = errors.New("datagram of 9000 bytes or more")

// packets reads the datagrams of one client of a caddy-l4 packet server.
//
// The server hands them over through a channel of 5, and its only loop waits
// when that is full: a handler that does not read stops the service of all
// clients. Its Read is no help, since it reports an empty datagram as EOF,
// ends after the server's own idle timeout, and once the server has been
// stopped by a reload never returns. WaitForMore has none of this, so it does
// the waiting here; Read, under a deadline that is long over, only fetches
// what has come.
type packets struct {
	cx *layer4.Connection

	// direct says that cx is the packet connection itself. With a handler in
	// between that wraps it, as proxy_protocol does, there is only Read.
	direct bool

	// spent says that what the matchers have prefetched has been returned.
	spent bool

	// armed says that the connection has the deadline that is over.
	armed bool

	// closed says that the server has let go of the connection.
	closed bool
}

func newPackets(cx *layer4.Connection) *packets {
	_, direct := cx.Conn.(net.PacketConn)
	return &packets{cx: cx, direct: direct}
}

// next returns the next datagram, whose size may be 0. It returns io.EOF when
// the server has let go of the connection, errCut for a datagram that must not
// be forwarded, or ctx's error.
func (p *packets) next(ctx context.Context, buf []byte) (int, error) {
	n, err := p.any(ctx, buf)
	if err == nil && n >= cutDatagram {
		return 0, errCut
	}
	return n, err
}

func (p *packets) any(ctx context.Context, buf []byte) (int, error) {
	if !p.spent {
		if len(p.cx.MatchingBytes()) > 0 {
			return p.prefetched(buf)
		}
		p.spent = true
	}
	if !p.direct {
		return p.read(ctx, buf)
	}
	if err := p.cx.WaitForMore(ctx); err != nil {
		return 0, err
	}
	return p.fetch(buf)
}

// fetch reads the datagram that WaitForMore has seen.
func (p *packets) fetch(buf []byte) (int, error) {
	if !p.armed {
		if err := p.cx.SetReadDeadline(past); err != nil {
			return 0, err
		}
		p.armed = true
	}
	n, err := p.cx.Conn.Read(buf)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.closed = true
		return 0, io.EOF
	case errors.Is(err, io.EOF):
		return 0, nil
	}
	return n, err
}

// prefetched returns a datagram that the matchers have read.
func (p *packets) prefetched(buf []byte) (int, error) {
	n, err := p.cx.Read(buf)
	if n > 0 || err != nil || !p.direct {
		return n, err
	}

	// The matchers were content with the first part of a datagram. caddy-l4
	// knows no frame for it and would read nothing for ever; the rest is still
	// in the packet connection, which from now on is all there is to read.
	p.spent = true
	n = copy(buf, p.cx.MatchingBytes())
	rest, err := p.fetch(buf[n:])
	return n + rest, err
}

// read is next for a wrapped connection.
func (p *packets) read(ctx context.Context, buf []byte) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.cx.SetReadDeadline(past) })
	defer stop()
	n, err := p.cx.Read(buf)
	if ctx.Err() != nil && n == 0 {
		return 0, ctx.Err()
	}
	return n, err
}

// finish closes the connection and waits for the server to let go of it.
//
// This is only safe when the client is silent. The server hears of a close
// through a channel of 10, in the same loop that waits for us to read: if many
// connections were closed at once, and this client went on sending, the server
// would wait for us and we for the server. So a client that sends is not let go
// of, and as soon as Close has returned, reading goes on until the server has.
// When ctx has ended the server has been stopped; see leave.
func (p *packets) finish(ctx context.Context) {
	inner := p.cx
	for range maxWrappers {
		next, deeper := unwrapTo[*layer4.Connection](inner.Conn)
		if !deeper {
			break
		}
		inner = next
	}
	if _, packet := inner.Conn.(net.PacketConn); !packet {
		return
	}
	direct := &packets{cx: inner, direct: true, closed: p.closed}
	if ctx.Err() != nil {
		direct.leave()
		return
	}
	if !p.direct {
		// Read's EOF may have been an empty datagram, with more behind it.
		for direct.drain(ctx, pause()) {
		}
	}
	if direct.closed {
		return // nobody would hear of the close
	}
	_ = inner.Conn.Close()
	for deadline := time.Now().Add(drainTimeout); time.Now().Before(deadline) && direct.drain(ctx, time.Until(deadline)); {
	}
}

// drain throws away one datagram. It reports whether there may be more: false
// if none has come within the given time, or the server has let go.
func (p *packets) drain(ctx context.Context, within time.Duration) bool {
	if p.closed {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if p.cx.WaitForMore(ctx) != nil {
		return false
	}
	buf := relay.Datagrams.Get()
	defer relay.Datagrams.Put(buf)
	_, err := p.fetch(*buf)
	return err == nil
}
