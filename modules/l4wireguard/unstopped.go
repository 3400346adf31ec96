package l4wireguard

import (
	"io"
	"net"
	"reflect"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
)

// serversOf returns the layer4 app that provisions the module of ctx, or nil if the
// module is in a listener wrapper of an http server.
func serversOf(ctx caddy.Context) *layer4.App {
	for _, module := range ctx.Modules() {
		if app, ok := module.(*layer4.App); ok {
			return app
		}
	}
	return nil
}

// closeUnstopped closes what an app listens with whose configuration is over, if it
// has not been stopped.
//
// The Start of caddy-l4 v0.1.2 ends at the first address that it cannot have, and
// leaves open what it has opened until then. Caddy stops no app whose Start has
// failed; http has a Cleanup for that, layer4 has none. Since such sockets share
// their ports with those of the configuration that goes on (SO_REUSEPORT), a part
// of all clients would be served by the one that was refused, or not at all, for as
// long as the process lives.
func closeUnstopped(app *layer4.App) {
	listeners, _ := unexported[[]net.Listener](app, "listeners")
	for _, ln := range listeners {
		closeOpen(ln)
	}
	packetConns, _ := unexported[[]net.PacketConn](app, "packetConns")
	for _, pc := range packetConns {
		closeOpen(pc)
	}
}

// closeOpen closes a socket of Caddy's that is not closed. Those that are must be
// left alone: Caddy counts who uses an address, and each Close counts.
func closeOpen(socket io.Closer) {
	for inner := any(socket); inner != nil; inner = embedded(inner) {
		conn, ok := inner.(syscall.Conn)
		if !ok {
			continue
		}
		raw, err := conn.SyscallConn()
		if err == nil && raw.Control(func(uintptr) {}) == nil {
			_ = socket.Close()
		}
		return
	}
}

// embedded returns what Caddy has wrapped: its wrappers are unexported structs that
// embed it.
func embedded(socket any) any {
	value := reflect.Indirect(reflect.ValueOf(socket))
	if value.Kind() != reflect.Struct {
		return nil
	}
	for _, name := range []string{"Listener", "PacketConn"} {
		if field := value.FieldByName(name); field.IsValid() && field.CanInterface() {
			return field.Interface()
		}
	}
	return nil
}

// unexported returns a field of a struct of another package, if there is one of that
// name and type.
func unexported[T any](of any, name string) (value T, ok bool) {
	field := reflect.ValueOf(of).Elem().FieldByName(name)
	if !field.IsValid() || field.Type() != reflect.TypeFor[T]() {
		return value, false
	}
	return reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem().Interface().(T), true
}
