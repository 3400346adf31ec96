package combinedlog

import (
	"strings"

	"go.uber.org/zap/buffer"
)

const hexDigits = "0123456789abcdef"

// appendEscaped writes s as Apache's ap_escape_logitem does: quotes and
// backslashes get a backslash, control bytes C's escapes or \xhh, and so does
// every byte that is not ASCII. So no client can end a field or a line.
func appendEscaped(b *buffer.Buffer, s string) {
	written := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c <= '~' && c != '"' && c != '\\' {
			continue
		}
		b.AppendString(s[written:i])
		written = i + 1
		b.AppendByte('\\')
		switch c {
		case '"', '\\':
			b.AppendByte(c)
		case '\b':
			b.AppendByte('b')
		case '\n':
			b.AppendByte('n')
		case '\r':
			b.AppendByte('r')
		case '\t':
			b.AppendByte('t')
		case '\v':
			b.AppendByte('v')
		default:
			b.AppendByte('x')
			b.AppendByte(hexDigits[c>>4])
			b.AppendByte(hexDigits[c&0xf])
		}
	}
	b.AppendString(s[written:])
}

func appendOrDash(b *buffer.Buffer, s string) {
	if s == "" {
		b.AppendByte('-')
		return
	}
	appendEscaped(b, s)
}

func appendQuoted(b *buffer.Buffer, s string, present bool) {
	if !present {
		b.AppendString(`"-"`)
		return
	}
	b.AppendByte('"')
	appendEscaped(b, s)
	b.AppendByte('"')
}

// appendURI writes a request's URI, and in an absolute one (RFC 9112, 3.2.2)
// eight X for the password, as Apache does: logs are read by more people than
// passwords are meant for.
func appendURI(b *buffer.Buffer, uri string) {
	if from, to, ok := password(uri); ok {
		appendEscaped(b, uri[:from])
		b.AppendString("XXXXXXXX")
		uri = uri[to:]
	}
	appendEscaped(b, uri)
}

// password says where in uri a password stands.
func password(uri string) (from, to int, ok bool) {
	if strings.HasPrefix(uri, "/") {
		return 0, 0, false
	}
	start := 0
	if i := strings.Index(uri, "://"); i >= 0 {
		start = i + len("://")
	}
	authority := uri[start:]
	if i := strings.IndexAny(authority, "/?#"); i >= 0 {
		authority = authority[:i]
	}
	at := strings.LastIndexByte(authority, '@')
	if at < 0 {
		return 0, 0, false
	}
	colon := strings.IndexByte(authority[:at], ':')
	if colon < 0 {
		return 0, 0, false
	}
	return start + colon + 1, start + at, true
}
