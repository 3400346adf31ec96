package l4wireguard

import (
	"context"
	"net"
	"reflect"
	"time"
)

// lastDatagrams is how long a server that is being stopped has to hand over
// what it has read: in its only loop, before it can see that it is to end.
const lastDatagrams = 100 * time.Millisecond

// leave lets go of a client whose server has been stopped, so that neither the
// server's loop nor the connection's Close waits for the other for ever.
func (p *packets) leave() {
	for deadline := time.Now().Add(drainTimeout); time.Now().Before(deadline) && p.drain(context.Background(), lastDatagrams); {
	}
	forgetServer(p.cx.Conn)
}

// forgetServer keeps the Close of a packet connection from waiting for its
// server, and says whether it could.
//
// caddy-l4 v0.1.2 closes a packet connection by telling the loop of its server
// through a channel of 10. The loop of a server that a reload has stopped has
// ended: of all its clients but the first 10 a goroutine stayed for ever, at
// every reload (https://github.com/mholt/caddy-l4/pull/462). The channel is put
// in the place of one that nobody else knows.
func forgetServer(conn net.Conn) bool {
	value := reflect.ValueOf(conn)
	if value.Kind() != reflect.Pointer || value.Elem().Kind() != reflect.Struct {
		return false
	}
	field := value.Elem().FieldByName("closeCh")
	if !field.IsValid() || field.Type() != reflect.TypeFor[chan string]() {
		return false
	}
	// Read and Close send one word each.
	reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem().Set(reflect.ValueOf(make(chan string, 2)))
	return true
}
