package l4wireguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/modules/wireguard"
)

// holdOff is for how long a client's datagrams are thrown away after its flow
// could not be had, so that no datagram costs a dial or a log line of its own.
// It is spread, lest all who failed together come back together.
const (
	holdOffLeast  = 500 * time.Millisecond
	holdOffSpread = time.Second
)

func holdOff() time.Duration { return holdOffLeast + rand.N(holdOffSpread) }

// way is how a flow's upstream was reached.
type way struct {
	address string
	route   wireguard.Route
}

// handleDatagrams passes a client's datagrams to its flow, until the flow ends
// or the server has no more for us. The flow may live on after that: what its
// upstream sends still goes to the client, and its next datagram finds it.
func (h *Handler) handleDatagrams(cx *layer4.Connection) error {
	in := newPackets(cx)
	line := h.line("udp", cx)

	flow, err := h.attach(cx, line)
	if err != nil {
		h.lines.do(func(suppressed int) { line.suppressing(suppressed).refused(err) })
		in.finish(h.running, holdOff())
		return nil
	}

	buf := relay.Datagrams.Get()
	defer relay.Datagrams.Put(buf)
	ctx, cancel := context.WithCancel(h.running)
	defer context.AfterFunc(flow.Context(), cancel)()
	defer cancel()
	for {
		n, err := in.next(ctx, *buf)
		switch {
		case err == nil:
			flow.Send((*buf)[:n])
			continue
		case errors.Is(err, errCut):
			h.lines.do(func(suppressed int) { line.suppressing(suppressed).cut() })
			continue
		case errors.Is(err, io.EOF), h.running.Err() != nil:
			// The flow stays for whoever adopts it.
			in.finish(h.running, 0)
			return nil
		}
		hold := time.Duration(0)
		if flow.Reason() == relay.DialFailed {
			hold = holdOff()
		}
		in.finish(h.running, hold)
		return nil
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
		Upstream: fmt.Sprintf("%s in %q with %x", strings.Join(addresses, " "), h.Tunnel, options.Header),
	}
	flow, _, err := relay.Flows.Attach(key, packetWriter{cx}, options)
	return flow, err
}

// packetWriter writes to a client past the layer4.Connection, whose counters
// belong to the handler that the flow may outlive.
type packetWriter struct{ cx *layer4.Connection }

func (w packetWriter) Write(datagram []byte) (int, error) { return w.cx.Conn.Write(datagram) }

func (h *Handler) idleUDP() time.Duration {
	if h.IdleTimeout > 0 {
		return time.Duration(h.IdleTimeout)
	}
	return defaultIdleUDP
}

// dialFlow tries the upstreams in order. With UDP the first one that can be
// addressed at all is the one: whether a program listens there, nobody says.
func (h *Handler) dialFlow(cx *layer4.Connection, addresses []string, line line) func(context.Context) (net.Conn, any, error) {
	options := wireguard.DialOptions{Tunnel: h.Tunnel, Client: clientAddr(cx)}
	return func(ctx context.Context) (net.Conn, any, error) {
		var errs []error
		for i, address := range addresses {
			dialCtx, cancel := context.WithTimeout(ctx, h.dialTimeout())
			conn, route, err := h.app.Dial(dialCtx, "udp", address, options)
			cancel()
			if err == nil {
				return conn, way{address, route}, nil
			}
			errs = append(errs, err)
			if ctx.Err() != nil {
				break
			}
			if i+1 < len(addresses) {
				h.lines.do(func(suppressed int) {
					line.suppressing(suppressed).nextUpstream(address, addresses[i+1], err)
				})
			}
		}
		return nil, nil, errors.Join(errs...)
	}
}

// flowEnded writes the flow's line.
func (h *Handler) flowEnded(addresses []string, line line) func(relay.FlowResult) {
	return func(result relay.FlowResult) {
		switch result.Reason {
		case relay.DialFailed:
			h.lines.do(func(suppressed int) { line.suppressing(suppressed).unreachable(addresses, result.Err) })
		case relay.Evicted:
			h.lines.do(func(suppressed int) { line.suppressing(suppressed).flowEnded(result) })
		default:
			line.flowEnded(result)
		}
	}
}
