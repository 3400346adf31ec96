package combinedlog

import (
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// timeLayout is Apache's %t.
const timeLayout = "[02/Jan/2006:15:04:05 -0700]"

// request is one request and its answer, as far as a line tells of them. Its
// strings are those of the request, so that taking one copies no byte.
type request struct {
	remoteIP, remotePort, clientIP string
	method, host, uri, proto       string

	referer, userAgent       string
	hasReferer, hasUserAgent bool // an empty header is "", a missing one "-"

	user     string
	status   int64
	size     int64
	duration time.Duration

	// known says that there is a request at all.
	known bool
}

// of takes what lines need of Caddy's own request. Nothing of the request is
// kept that a handler could change later.
func (r *request) of(l caddyhttp.LoggableHTTPRequest) {
	*r = request{known: true, user: r.user, status: r.status, size: r.size, duration: r.duration}
	var err error
	if r.remoteIP, r.remotePort, err = net.SplitHostPort(l.RemoteAddr); err != nil {
		r.remoteIP, r.remotePort = l.RemoteAddr, ""
	}
	r.clientIP, _ = caddyhttp.GetVar(l.Context(), caddyhttp.ClientIPVarKey).(string)
	r.method, r.host, r.uri, r.proto = l.Method, l.Host, l.RequestURI, l.Proto
	r.setHeader("Referer", l.Header["Referer"])
	r.setHeader("User-Agent", l.Header["User-Agent"])
}

// setHeader takes a header's values. Apache joins several as RFC 9110, 5.3
// has it.
func (r *request) setHeader(key string, values []string) {
	if len(values) == 0 {
		return
	}
	value := values[0]
	if len(values) > 1 {
		value = strings.Join(values, ", ")
	}
	switch http.CanonicalHeaderKey(key) {
	case "Referer":
		r.referer, r.hasReferer = value, true
	case "User-Agent":
		r.userAgent, r.hasUserAgent = value, true
	}
}

// take makes r's request the one of other and leaves r's answer alone.
func (r *request) take(other *request) {
	q := *other
	q.user, q.status, q.size, q.duration = r.user, r.status, r.size, r.duration
	*r = q
}

// see takes what a field outside the request object has for a line.
func (r *request) see(f *zapcore.Field) {
	switch f.Type {
	case zapcore.StringType:
		r.seeString(f.Key, f.String)
	case zapcore.DurationType:
		r.seeDuration(f.Key, time.Duration(f.Integer))
	case zapcore.Int64Type, zapcore.Int32Type, zapcore.Int16Type:
		r.seeInt(f.Key, f.Integer)
	}
}

func (r *request) seeInt(key string, value int64) {
	switch key {
	case "status":
		r.status = value
	case "size":
		r.size = value
	}
}

func (r *request) seeString(key, value string) {
	if key == "user_id" {
		r.user = value
	}
}

func (r *request) seeDuration(key string, value time.Duration) {
	if key == "duration" {
		r.duration = value
	}
}

// appendTo writes the line for an entry. Caddy logs a request when it is
// done, and Apache's time is that of its arrival.
func (r *request) appendTo(b *buffer.Buffer, ent zapcore.Entry) {
	address := r.clientIP
	if address == "" {
		address = r.remoteIP
	}
	appendOrDash(b, address)
	b.AppendString(" - ")
	appendOrDash(b, r.user)
	b.AppendByte(' ')
	b.AppendTime(ent.Time.Add(-r.duration).Local(), timeLayout)

	b.AppendString(` "`)
	appendEscaped(b, r.method)
	b.AppendByte(' ')
	appendURI(b, r.uri)
	b.AppendByte(' ')
	appendEscaped(b, r.proto)
	b.AppendString(`" `)

	switch {
	case r.status > 0:
		b.AppendInt(r.status)
	case ent.Message == "NOP":
		// No handler had an answer, so net/http sent its own.
		b.AppendInt(http.StatusOK)
	default:
		b.AppendByte('-')
	}
	b.AppendByte(' ')
	// The answer to HEAD is counted by Caddy as handlers write it, and has no
	// body on the wire.
	if r.size > 0 && r.method != http.MethodHead {
		b.AppendInt(r.size)
	} else {
		b.AppendByte('-')
	}

	b.AppendByte(' ')
	appendQuoted(b, r.referer, r.hasReferer)
	b.AppendByte(' ')
	appendQuoted(b, r.userAgent, r.hasUserAgent)
	b.AppendByte('\n')
}

// MarshalLogObject writes the request for lines that are not access logs, in
// Caddy's names.
func (r *request) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("remote_ip", r.remoteIP)
	enc.AddString("remote_port", r.remotePort)
	if r.clientIP != "" {
		enc.AddString("client_ip", r.clientIP)
	}
	enc.AddString("proto", r.proto)
	enc.AddString("method", r.method)
	enc.AddString("host", r.host)
	enc.AddString("uri", r.uri)
	if !r.hasReferer && !r.hasUserAgent {
		return nil
	}
	return enc.AddObject("headers", zapcore.ObjectMarshalerFunc(func(enc zapcore.ObjectEncoder) error {
		if r.hasReferer {
			if err := enc.AddArray("Referer", caddyhttp.LoggableStringArray{r.referer}); err != nil {
				return err
			}
		}
		if r.hasUserAgent {
			return enc.AddArray("User-Agent", caddyhttp.LoggableStringArray{r.userAgent})
		}
		return nil
	}))
}
