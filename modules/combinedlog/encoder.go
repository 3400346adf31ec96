// Package combinedlog is the log encoder `combined`: access logs in Apache's
// combined log format, for the many programs that read nothing else.
package combinedlog

import (
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

func init() { caddy.RegisterModule(new(Encoder)) }

// accessLogger is the name that Caddy's http app gives its access logger; a
// site's own logger is named below it, as http.log.access.log0.
const accessLogger = "http.log.access"

var (
	buffers = buffer.NewPool()

	// plain writes what is no access line, in the form that Caddy uses where
	// no format is configured. It is only ever cloned.
	plain = zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
)

// Encoder writes access logs in Apache's combined log format, byte for byte
// as Apache's mod_log_config does for
//
//	%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"
//
// A line looks like this:
//
//	192.0.2.7 - alice [22/Nov/2026:12:05:33 +0100] "GET /a HTTP/2.0" 200 512 "-" "curl/8.5.0"
//
// The address is Caddy's client_ip (the one behind trusted_proxies), else that
// of the connection. The request line is what the client sent, before any
// rewrite. The time is that of the request's arrival, in the local time zone
// (TZ). The size is of the body as sent, after compression, and is "-" for
// none. A status of "-" means that the connection was dropped without an
// answer (`abort`). In an absolute request URI a password is blotted out.
//
// Log entries that are not access logs, as when this is the format of the
// global log, become one line of JSON each, as Caddy writes by default; there
// an HTTP request shows who asked for what, not its other headers.
//
// It has no options, and may be wrapped by the `filter` and `append` encoders.
type Encoder struct {
	// seen is what an access line needs of the fields added so far.
	seen request

	// rest is every field added so far, for lines that are not access logs;
	// nil as long as there is none, which is the normal case.
	rest zapcore.Encoder

	// owed says that seen has a request that rest does not have yet.
	owed bool

	// at is the object that fields are being added to.
	at place
}

// CaddyModule returns the Caddy module information.
func (*Encoder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.logging.encoders.combined",
		New: func() caddy.Module { return new(Encoder) },
	}
}

// Clone returns an encoder to which fields can be added without changing e.
func (e *Encoder) Clone() zapcore.Encoder { return e.clone() }

func (e *Encoder) clone() *Encoder {
	c := *e
	if e.rest != nil {
		c.rest = e.rest.Clone()
	}
	return &c
}

// EncodeEntry returns ent with the fields added to e and the given ones as one
// line, which ends in a newline and has no other. It does not change e, and
// may be called from several goroutines at once.
func (e *Encoder) EncodeEntry(ent zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	if ent.LoggerName != accessLogger && !strings.HasPrefix(ent.LoggerName, accessLogger+".") {
		return e.encodePlain(ent, fields)
	}
	r := e.seen
	for i := range fields {
		// Usually a request comes with the logger and not with the entry, and
		// what is an object needs an encoder to be seen.
		if fields[i].Key == "request" {
			c := e.clone()
			fields[i].AddTo(c)
			r.take(&c.seen)
			continue
		}
		if fields[i].Type == zapcore.NamespaceType {
			break
		}
		r.see(&fields[i])
	}
	if !r.known {
		return e.encodePlain(ent, fields)
	}
	line := buffers.Get()
	r.appendTo(line, ent)
	return line, nil
}

func (e *Encoder) encodePlain(ent zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	if e.owed {
		e = e.clone()
		return e.all().EncodeEntry(ent, fields)
	}
	if e.rest == nil {
		return plain.EncodeEntry(ent, fields)
	}
	return e.rest.EncodeEntry(ent, fields)
}

// UnmarshalCaddyfile sets up the encoder from Caddyfile tokens. Syntax:
//
//	combined
func (e *Encoder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the encoder's name
	if d.NextArg() {
		return d.Errf("format combined takes no argument, and there is %q: the format is fixed, as programs that read it expect", d.Val())
	}
	if d.NextBlock(0) {
		return d.Errf("format combined has no option %q: the format is fixed; to change or leave out fields, wrap it in `format filter`", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Module          = (*Encoder)(nil)
	_ zapcore.Encoder       = (*Encoder)(nil)
	_ caddyfile.Unmarshaler = (*Encoder)(nil)
)
