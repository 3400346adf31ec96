package l4wireguard

import (
	"net"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/mholt/caddy-l4/modules/l4proxyprotocol"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/modules/wireguard"
)

// line writes what there is to say about one connection or flow. Every line
// has `network`, `remote` and, for fail2ban and its like, `remote_ip`.
type line struct{ logger *zap.Logger }

// line starts a line for the client of cx: the one that a PROXY protocol
// header named, if there was one.
func (h *Handler) line(network string, cx *layer4.Connection) line {
	remote := l4proxyprotocol.GetConn(cx).RemoteAddr().String()
	ip, _, err := net.SplitHostPort(remote)
	if err != nil {
		ip = remote
	}
	return line{h.connections.With(
		zap.String("network", network),
		zap.String("remote", remote),
		zap.String("remote_ip", ip),
		zap.String("local", cx.LocalAddr().String()),
	)}
}

// suppressing adds how many lines like this one were not written.
func (l line) suppressing(suppressed int) line {
	if suppressed == 0 {
		return l
	}
	return line{l.logger.With(zap.Int("suppressed", suppressed))}
}

// ended is the one line of a relayed connection. Its bytes are counted from
// the client's side: read from it, written to it.
func (l line) ended(address string, route wireguard.Route, result relay.Result) {
	if entry := l.check(result.Reason, "relayed connection"); entry != nil {
		entry.Write(append(routeFields(address, route),
			zap.Uint64("bytes_read", result.Sent),
			zap.Uint64("bytes_written", result.Received),
			zap.Duration("duration", result.Duration),
			zap.String("reason", string(result.Reason)),
			zap.Error(result.Err),
		)...)
	}
}

// flowEnded is the one line of a flow.
func (l line) flowEnded(result relay.FlowResult) {
	entry := l.check(result.Reason, "relayed datagrams")
	if entry == nil {
		return
	}
	var fields []zap.Field
	if reached, ok := result.Dialed.(way); ok {
		fields = routeFields(reached.address, reached.route)
		if reached.transparent && result.SentDatagrams > 0 && result.ReceivedDatagrams == 0 {
			fields = append(fields, zap.String("hint", noAnswers))
		}
	}
	entry.Write(append(fields,
		zap.Uint64("bytes_read", result.Sent),
		zap.Uint64("bytes_written", result.Received),
		zap.Uint64("datagrams_read", result.SentDatagrams),
		zap.Uint64("datagrams_written", result.ReceivedDatagrams),
		zap.Uint64("datagrams_dropped", result.Dropped),
		zap.Duration("duration", result.Duration),
		zap.String("reason", string(result.Reason)),
		zap.Error(result.Err),
	)...)
}

func (l line) check(reason relay.Reason, message string) *zapcore.CheckedEntry {
	level := zapcore.InfoLevel
	if reason.Upstream() {
		level = zapcore.WarnLevel
	}
	return l.logger.Check(level, message)
}

func routeFields(address string, route wireguard.Route) []zap.Field {
	fields := []zap.Field{zap.String("upstream", address)}
	if route.Tunnel != "" { // else direct
		fields = append(fields, zap.String("tunnel", route.Tunnel), zap.String("peer", route.Peer))
	}
	fields = append(fields,
		zap.Stringer("address", route.Address),
		// What the upstream sees as its client.
		zap.Stringer("source", route.Source),
	)
	if route.SourceReason != "" {
		fields = append(fields, zap.String("source_reason", route.SourceReason))
	}
	return fields
}

// unreachable is the one line of a connection that no upstream took.
func (l line) unreachable(addresses []string, err error) {
	l.logger.Error("no upstream could be dialed", zap.Strings("upstreams", addresses), zap.Error(err))
}

// refused is the one line of a connection that was not even dialed.
func (l line) refused(err error) {
	l.logger.Error("refused connection", zap.Error(err))
}

// nextUpstream says that an upstream was passed over.
func (l line) nextUpstream(address, next string, err error) {
	l.logger.Warn("dialing upstream, trying the next",
		zap.String("upstream", address), zap.String("next", next), zap.Error(err))
}

// passedOver writes a line about an upstream that was passed over.
func (h *Handler) passedOver(line line, address, next string, err error) {
	h.lines.next.do(func(suppressed int) { line.suppressing(suppressed).nextUpstream(address, next, err) })
}

// cut says that a datagram was dropped because caddy-l4 may have cut it.
func (l line) cut() {
	l.logger.Warn("dropped datagram of 9000 bytes or more: layer4 servers take no larger ones")
}
