package wireguard

import (
	"errors"
	"io"
	"net"
	"reflect"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
)

// closeLeftOpen closes what a layer4 app still listens on when its configuration
// ends.
//
// Caddy does not stop an app whose Start has failed, and stops none if something
// fails when all have been started. The http app sees to its listeners in Cleanup
// then; caddy-l4 v0.1.2 has no Cleanup. Its servers went on for ever, in a
// configuration that had never been in force: of the clients of every server
// that the two configurations shared the kernel sent them half, and the port of a
// server that was taken away later stayed open.
//
// The app keeps its listeners to itself and closes them all a second time when
// it is stopped a second time, which Caddy would count twice. So each is looked
// at: whether it is open, which only those can tell that Caddy makes, and ours,
// to which a second Close is nothing.
//
// Unix sockets stay open: Caddy v2.11.9 opens one again as a copy of the last
// copy that it has made, and can no more if that is the first to be closed. No
// later reload would be possible.
func closeLeftOpen(app *layer4.App) (err error) {
	closeOpen := func(listener io.Closer) {
		if isLeftOpen(listener) {
			err = errors.Join(err, listener.Close())
		}
	}
	for _, listener := range *private[[]net.Listener](app, "listeners") {
		closeOpen(listener)
	}
	for _, conn := range *private[[]net.PacketConn](app, "packetConns") {
		closeOpen(conn)
	}
	return err
}

// private is a field that the layer4 app does not show, or an empty one if this
// version has none of this name and type.
func private[T any](app *layer4.App, name string) *T {
	field := reflect.ValueOf(app).Elem().FieldByName(name)
	if !field.IsValid() || field.Type() != reflect.TypeFor[T]() {
		return new(T)
	}
	return (*T)(field.Addr().UnsafePointer())
}

// isLeftOpen tells whether a listener is certainly open, or does not mind being
// closed twice.
func isLeftOpen(listener io.Closer) bool {
	switch own := listener.(type) {
	case *listenerUse:
		return !isClosed(own.closed)
	case *packetConnUse:
		return !isClosed(own.closed)
	}
	// On Unix Caddy's listeners are structs around the socket, each with one of
	// its own. Elsewhere they are pointers, which share one and remember that
	// they have been closed.
	made := reflect.TypeOf(listener)
	if made.Kind() == reflect.Pointer {
		return made.Elem().PkgPath() == caddyPackage && !isUnix(listener)
	}
	if made.PkgPath() != caddyPackage || made.Kind() != reflect.Struct {
		return false
	}
	for _, name := range []string{"Listener", "PacketConn"} {
		field := reflect.ValueOf(listener).FieldByName(name)
		if !field.IsValid() {
			continue
		}
		socket, ok := field.Interface().(syscall.Conn)
		if !ok || isUnix(socket) {
			return false
		}
		raw, err := socket.SyscallConn()
		return err == nil && raw.Control(func(uintptr) {}) == nil
	}
	return false
}

// isUnix tells whether a listener is a Unix socket.
func isUnix(listener any) bool {
	var address net.Addr
	switch listener := listener.(type) {
	case net.Listener:
		address = listener.Addr()
	case net.PacketConn:
		address = listener.LocalAddr()
	}
	return address != nil && caddy.IsUnixNetwork(address.Network())
}

var caddyPackage = reflect.TypeFor[caddy.Context]().PkgPath()
