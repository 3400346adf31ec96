package l4wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/modules/wireguard"
)

// handleStream relays a TCP connection. It returns no error, which the server
// would log a second time.
func (h *Handler) handleStream(cx *layer4.Connection) error {
	h.tunePublic(cx)
	down := &client{Connection: cx}
	// As the Stream will, for as long as there is none yet.
	_ = down.SetLinger(0)
	line := h.line("tcp", cx)

	release, err := relay.Streams.Hold()
	if err != nil {
		down.refuse()
		h.lines.full.do(func(suppressed int) { line.suppressing(suppressed).refused(err) })
		return nil
	}
	defer release()

	addresses, err := h.addresses(cx, "tcp")
	if err != nil {
		down.refuse()
		h.lines.refused.do(func(suppressed int) { line.suppressing(suppressed).refused(err) })
		return nil
	}
	up, route, address, err := h.dialFirst(cx, addresses, line)
	if err != nil {
		down.refuse()
		h.lines.unreachable.do(func(suppressed int) { line.suppressing(suppressed).unreachable(addresses, err) })
		return nil
	}

	stream := relay.NewStream(down, up, time.Duration(h.IdleTimeout))
	result := relay.Streams.Run(stream)
	down.account(result)
	line.ended(address, route, result)
	return nil
}

// dialFirst dials the upstreams in order until one answers.
func (h *Handler) dialFirst(cx *layer4.Connection, addresses []string, line line) (relay.Conn, wireguard.Route, string, error) {
	var errs []error
	for i, address := range addresses {
		up, route, err := h.dialStream(cx, address)
		if err == nil {
			return up, route, address, nil
		}
		errs = append(errs, err)
		if h.dialing.Err() != nil {
			break
		}
		if i+1 < len(addresses) {
			h.passedOver(line, address, addresses[i+1], err)
		}
	}
	return nil, wireguard.Route{}, "", errors.Join(errs...)
}

// dialStream connects to one upstream within the dial timeout and says who the
// client is, if it is to.
func (h *Handler) dialStream(cx *layer4.Connection, address string) (relay.Conn, wireguard.Route, error) {
	ctx, cancel := context.WithTimeout(h.dialing, h.dialTimeout())
	defer cancel()
	conn, route, err := h.app.Dial(ctx, "tcp", address, h.dialOptions(cx))
	if err != nil {
		return nil, route, err
	}
	up, ok := conn.(relay.Conn)
	if !ok {
		_ = conn.Close()
		return nil, route, fmt.Errorf("dialing %s: a %T cannot be closed by half", address, conn)
	}
	if kept, ok := conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		// Without keepalive the connection works as well.
		_ = kept.SetKeepAliveConfig(relay.KeepAlive)
	}
	if h.proxyVersion != 0 {
		if err := writeProxyHeader(ctx, up, h.proxyVersion, cx); err != nil {
			_ = up.SetLinger(0)
			_ = up.Close()
			return nil, route, fmt.Errorf("dialing %s: %w", address, err)
		}
	}
	return up, route, nil
}
