package l4wireguard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/pires/go-proxyproto"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/modules/wireguard"
)

// A client's datagrams are thrown away for pauseLeast to pauseLeast+pauseSpread
// after its flow could not be had, so that no datagram costs a dial or a log
// line of its own. A client without a flow has gone once it has been silent for
// as long. The spread keeps clients that lost their flows together, as all do
// when home is away, from coming back and from going together.
const (
	pauseLeast  = 500 * time.Millisecond
	pauseSpread = time.Second
)

func pause() time.Duration { return pauseLeast + rand.N(pauseSpread) }

// way is how a flow's upstream was reached.
type way struct {
	address string
	route   wireguard.Route

	// transparent says that the upstream sees the client's own address.
	transparent bool
}

// handleDatagrams passes a client's datagrams to its flow, for as long as the
// client sends any and the server runs. It goes on after the end of a flow, with
// another: see packets.finish for what it takes to let go of a client. The flow
// may in turn live on after it; what its upstream sends still goes to the
// client, whose next datagram finds it.
func (h *Handler) handleDatagrams(cx *layer4.Connection) error {
	in := newPackets(cx)
	line := h.line("udp", cx)
	buf := relay.Datagrams.Get()
	defer relay.Datagrams.Put(buf)

	var (
		flow   *relay.Flow
		lives  = h.running // until the flow or the server ends
		forget = func() {}
		paused time.Time // until when there is no flow to be had
	)
	defer func() { forget() }()
	for {
		n, err := nextDatagram(lives, in, *buf, flow == nil)
		if flow != nil && flow.Context().Err() != nil {
			if flow.Reason() == relay.DialFailed {
				paused = time.Now().Add(pause())
			}
			forget()
			flow, lives = nil, h.running
			if errors.Is(err, context.Canceled) && h.running.Err() == nil {
				continue
			}
		}
		switch {
		case errors.Is(err, errCut):
			h.lines.cut.do(func(suppressed int) { line.suppressing(suppressed).cut() })
			continue
		case err != nil:
			// The client is gone, or the server is.
			in.finish(h.running)
			return nil
		}

		if flow == nil {
			if time.Now().Before(paused) {
				continue
			}
			if flow, err = h.attach(cx, line); err != nil {
				h.lines.refused.do(func(suppressed int) { line.suppressing(suppressed).refused(err) })
				paused = time.Now().Add(pause())
				continue
			}
			lives, forget = both(h.running, flow.Context())
		}
		flow.Send((*buf)[:n])
	}
}

// nextDatagram waits for a datagram until ctx ends or, from a client without a
// flow, for as long as it may take to be gone.
func nextDatagram(ctx context.Context, in *packets, buf []byte, impatient bool) (int, error) {
	if impatient {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, pause())
		defer cancel()
	}
	return in.next(ctx, buf)
}

// both returns a context that ends with a and with b.
func both(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(a)
	stop := context.AfterFunc(b, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// attach returns the flow of this client and upstream, new or adopted.
func (h *Handler) attach(cx *layer4.Connection, line line) (*relay.Flow, error) {
	addresses, err := h.addresses(cx, "udp")
	if err != nil {
		return nil, err
	}
	options := relay.FlowOptions{
		Dial:        h.dialFlow(cx, addresses, line),
		Keep:        h.keepFlow(cx),
		IdleTimeout: h.idleUDP(),
		Ended:       h.flowEnded(addresses, line),
		Owner:       h,
	}
	switch h.proxyVersion {
	case 1:
		return nil, errProxyV1
	case 2:
		if options.Header, err = proxyHeader(2, cx); err != nil {
			return nil, err
		}
	}
	key := relay.FlowKey{
		Listener: cx.LocalAddr().Network() + "/" + cx.LocalAddr().String(),
		Client:   cx.RemoteAddr().String(),
		Upstream: fmt.Sprintf("%s in %q (direct %t) with %x", strings.Join(addresses, " "), h.Tunnel, h.Direct, options.Header),
	}
	flow, _, err := relay.Flows.Attach(key, packetWriter{uncounted(cx)}, options)
	if h.running.Err() != nil {
		relay.Flows.Orphan(h) // Cleanup has been too early for this one
	}
	return flow, err
}

// packetWriter writes to a client.
type packetWriter struct{ conn net.Conn }

func (w packetWriter) Write(datagram []byte) (int, error) { return w.conn.Write(datagram) }

// uncounted is what to write to past the layer4.Connections, whose counters
// belong to the handler that the flow may outlive. There is one of them below a
// PROXY protocol header, too.
func uncounted(conn net.Conn) net.Conn {
	for range maxWrappers {
		switch c := conn.(type) {
		case *layer4.Connection:
			conn = c.Conn
		case *proxyproto.Conn:
			conn = c.Raw()
		default:
			return conn
		}
	}
	return conn
}

func (h *Handler) idleUDP() time.Duration {
	if h.IdleTimeout > 0 {
		return time.Duration(h.IdleTimeout)
	}
	return defaultIdleUDP
}

// dialFlow tries the upstreams in order. With UDP the first one that can be
// addressed at all is the one: whether a program listens there, nobody says.
func (h *Handler) dialFlow(cx *layer4.Connection, addresses []string, line line) func(context.Context) (net.Conn, any, error) {
	options := h.dialOptions(cx)
	return func(ctx context.Context) (net.Conn, any, error) {
		var errs []error
		for i, address := range addresses {
			dialCtx, cancel := context.WithTimeout(ctx, h.dialTimeout())
			conn, route, err := h.app.Dial(dialCtx, "udp", address, options)
			cancel()
			if err == nil {
				return conn, way{address, route, options.Transparent && route.Source.Addr() == options.Client}, nil
			}
			errs = append(errs, err)
			if ctx.Err() != nil {
				break
			}
			if i+1 < len(addresses) {
				h.passedOver(line, address, addresses[i+1], err)
			}
		}
		return nil, nil, errors.Join(errs...)
	}
}

// flowEnded writes the flow's line. Anybody can begin any number of flows, from
// addresses that are not his; one that home has answered is always told of.
func (h *Handler) flowEnded(addresses []string, line line) func(relay.FlowResult) {
	return func(result relay.FlowResult) {
		switch {
		case result.Reason == relay.DialFailed:
			h.lines.unreachable.do(func(suppressed int) { line.suppressing(suppressed).unreachable(addresses, result.Err) })
		case result.Reason == relay.Evicted:
			h.lines.evicted.do(func(suppressed int) { line.suppressing(suppressed).flowEnded(result) })
		case result.ReceivedDatagrams == 0:
			h.lines.unanswered.do(func(suppressed int) { line.suppressing(suppressed).flowEnded(result) })
		default:
			line.flowEnded(result)
		}
	}
}
