package combinedlog

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// TestOtherLines has entries that are no access logs written whole, each as
// one line of JSON.
func TestOtherLines(t *testing.T) {
	request := zap.Object("request", asked("GET", "/", "HTTP/1.1", "192.0.2.7:4711", "192.0.2.7",
		http.Header{"User-Agent": {"curl"}, "Referer": {"here"}}))
	wantRequest := map[string]any{
		"remote_ip": "192.0.2.7", "remote_port": "4711", "client_ip": "192.0.2.7",
		"proto": "HTTP/1.1", "method": "GET", "host": "example.org", "uri": "/",
		"headers": map[string]any{"User-Agent": []any{"curl"}, "Referer": []any{"here"}},
	}
	tests := []struct {
		name         string
		logger       string
		with, fields []zapcore.Field
		want         map[string]any
	}{
		{name: "no field", logger: "admin", want: map[string]any{}},
		{
			name: "error of a request", logger: "http.log.error.log0",
			with:   []zapcore.Field{request, zap.Duration("duration", time.Second)},
			fields: []zapcore.Field{zap.Int("status", 502), zap.String("err_id", "x")},
			want:   map[string]any{"request": wantRequest, "duration": 1.0, "status": 502.0, "err_id": "x"},
		},
		{
			name: "only a request", logger: "http.log.error",
			with: []zapcore.Field{request}, want: map[string]any{"request": wantRequest},
		},
		{
			name: "request with the entry", logger: "http.handlers.reverse_proxy",
			fields: []zapcore.Field{request}, want: map[string]any{"request": wantRequest},
		},
		{
			name: "namespace after the request", logger: "http.log.error",
			with:   []zapcore.Field{request, zap.Namespace("first_error")},
			fields: []zapcore.Field{zap.String("msg", "x")},
			want:   map[string]any{"request": wantRequest, "first_error": map[string]any{"msg": "x"}},
		},
		{
			name: "access logger without a request", logger: "http.log.access",
			fields: []zapcore.Field{zap.Int("status", 200)}, want: map[string]any{"status": 200.0},
		},
		{
			name: "a request of another kind", logger: "tls.obtain",
			with: []zapcore.Field{zap.String("request", "POST"), zap.Any("list", []int{1, 2})},
			want: map[string]any{"request": "POST", "list": []any{1.0, 2.0}},
		},
		{
			name: "every kind of field", logger: "x",
			with: []zapcore.Field{
				zap.Bool("bool", true), zap.Float64("float", 1.5), zap.Float32("float32", 0.5), zap.Uint64("uint", 1),
				zap.Uint32("uint32", 2), zap.Uint16("uint16", 3), zap.Uint8("uint8", 4), zap.Uintptr("uintptr", 5),
				zap.Int32("int32", -1), zap.Int16("int16", -2), zap.Int8("int8", -3), zap.Int("int", -4), zap.Uint("plain", 6),
				zap.ByteString("bytes", []byte("b")), zap.Binary("binary", []byte{0}), zap.Time("time", time.Unix(1, 0)),
				zap.Complex128("complex", 1i), zap.Complex64("complex64", 1i), zap.Reflect("reflected", map[string]int{"a": 1}),
				zap.Error(errors.New("e")), zap.Strings("strings", []string{"s"}), zap.Dict("dict", zap.Int("status", 1)),
			},
			want: map[string]any{
				"bool": true, "float": 1.5, "float32": 0.5, "uint": 1.0, "uint32": 2.0, "uint16": 3.0, "uint8": 4.0, "uintptr": 5.0,
				"int32": -1.0, "int16": -2.0, "int8": -3.0, "int": -4.0, "plain": 6.0, "bytes": "b", "binary": "AA==", "time": 1.0,
				"complex": "0+1i", "complex64": "0+1i", "reflected": map[string]any{"a": 1.0}, "error": "e", "strings": []any{"s"},
				"dict": map[string]any{"status": 1.0},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ent := zapcore.Entry{LoggerName: tt.logger, Time: time.Unix(5, 0), Level: zapcore.ErrorLevel, Message: "one\ntwo"}
			tt.want["logger"], tt.want["ts"], tt.want["level"], tt.want["msg"] = tt.logger, 5.0, "error", "one\ntwo"
			want, err := json.Marshal(tt.want)
			if err != nil {
				t.Fatal(err)
			}
			line := encode(t, new(Encoder), ent, tt.with, tt.fields)
			if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
				t.Errorf("not one line: %q", line)
			}
			var fields any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			got, err := json.Marshal(fields) // sorted
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
		})
	}
}
