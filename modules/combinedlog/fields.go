package combinedlog

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"
)

// place is where in a log entry fields are being added. It is a state of the
// encoder and not an encoder of its own for each object, because encoders that
// wrap this one add the fields of an object to this one and not to what they
// were handed.
type place uint8

const (
	atTop place = iota
	inRequest
	inHeaders
	elsewhere
)

func (p place) enter(key string) place {
	switch {
	case p == atTop && key == "request":
		return inRequest
	case p == inRequest && key == "headers":
		return inHeaders
	}
	return elsewhere
}

// all returns the encoder that has every field, for lines that are not access
// logs.
func (e *Encoder) all() zapcore.Encoder {
	if e.rest == nil {
		e.rest = plain.Clone()
	}
	if e.owed {
		e.owed = false
		// Its only errors are of its own marshaler, which has none.
		_ = e.rest.AddObject("request", &e.seen)
	}
	return e.rest
}

// AddObject is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddObject(key string, marshaler zapcore.ObjectMarshaler) error {
	if e.at == atTop && key == "request" {
		if r, ok := marshaler.(caddyhttp.LoggableHTTPRequest); ok && r.Request != nil {
			e.seen.of(r)
			e.owed = true
			return nil
		}
	}
	rest := e.all()
	outer := e.at
	e.at = outer.enter(key)
	if e.at == inRequest {
		e.seen.known = true
	}
	defer func() { e.at = outer }()
	return rest.AddObject(key, zapcore.ObjectMarshalerFunc(func(zapcore.ObjectEncoder) error {
		return marshaler.MarshalLogObject(e)
	}))
}

// AddArray is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddArray(key string, marshaler zapcore.ArrayMarshaler) error {
	if e.at == inHeaders {
		e.seen.setHeader(key, valuesOf(marshaler))
	}
	return e.all().AddArray(key, marshaler)
}

func valuesOf(marshaler zapcore.ArrayMarshaler) []string {
	if values, ok := marshaler.(caddyhttp.LoggableStringArray); ok {
		return values
	}
	m := zapcore.NewMapObjectEncoder()
	if err := m.AddArray("", marshaler); err != nil {
		return nil
	}
	list, _ := m.Fields[""].([]any)
	values := make([]string, 0, len(list))
	for _, v := range list {
		values = append(values, fmt.Sprint(v))
	}
	return values
}

// AddString is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddString(key, value string) {
	switch e.at {
	case atTop:
		e.seen.seeString(key, value)
	case inRequest:
		e.seen.setString(key, value)
	case inHeaders:
		e.seen.setHeader(key, []string{value})
	}
	e.all().AddString(key, value)
}

func (r *request) setString(key, value string) {
	switch key {
	case "remote_ip":
		r.remoteIP = value
	case "remote_port":
		r.remotePort = value
	case "client_ip":
		r.clientIP = value
	case "proto":
		r.proto = value
	case "method":
		r.method = value
	case "host":
		r.host = value
	case "uri":
		r.uri = value
	}
}

// AddInt64 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddInt64(key string, value int64) {
	if e.at == atTop {
		e.seen.seeInt(key, value)
	}
	e.all().AddInt64(key, value)
}

// AddInt is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddInt(key string, value int) { e.AddInt64(key, int64(value)) }

// AddInt32 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddInt32(key string, value int32) { e.AddInt64(key, int64(value)) }

// AddInt16 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddInt16(key string, value int16) { e.AddInt64(key, int64(value)) }

// AddInt8 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddInt8(key string, value int8) { e.AddInt64(key, int64(value)) }

// AddDuration is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddDuration(key string, value time.Duration) {
	if e.at == atTop {
		e.seen.seeDuration(key, value)
	}
	e.all().AddDuration(key, value)
}

// OpenNamespace is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) OpenNamespace(key string) {
	e.all().OpenNamespace(key)
	e.at = elsewhere
}

// AddBinary is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddBinary(key string, value []byte) { e.all().AddBinary(key, value) }

// AddByteString is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddByteString(key string, value []byte) { e.all().AddByteString(key, value) }

// AddBool is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddBool(key string, value bool) { e.all().AddBool(key, value) }

// AddComplex128 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddComplex128(key string, value complex128) { e.all().AddComplex128(key, value) }

// AddComplex64 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddComplex64(key string, value complex64) { e.all().AddComplex64(key, value) }

// AddFloat64 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddFloat64(key string, value float64) { e.all().AddFloat64(key, value) }

// AddFloat32 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddFloat32(key string, value float32) { e.all().AddFloat32(key, value) }

// AddTime is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddTime(key string, value time.Time) { e.all().AddTime(key, value) }

// AddUint is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddUint(key string, value uint) { e.all().AddUint(key, value) }

// AddUint64 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddUint64(key string, value uint64) { e.all().AddUint64(key, value) }

// AddUint32 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddUint32(key string, value uint32) { e.all().AddUint32(key, value) }

// AddUint16 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddUint16(key string, value uint16) { e.all().AddUint16(key, value) }

// AddUint8 is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddUint8(key string, value uint8) { e.all().AddUint8(key, value) }

// AddUintptr is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddUintptr(key string, value uintptr) { e.all().AddUintptr(key, value) }

// AddReflected is part of the zapcore.ObjectEncoder interface.
func (e *Encoder) AddReflected(key string, value any) error { return e.all().AddReflected(key, value) }
