package wgbind

import (
	"reflect"

	"golang.zx2c4.com/wireguard/conn"
)

// families sends by IPv6 through a twin of the bind with which it sends by IPv4. The bind
// reuses addresses for what it sends, and one that was of IPv4 last takes no more than four
// bytes of the next by IPv6, which then goes elsewhere:
// https://github.com/WireGuard/wireguard-go/pull/135
type families struct {
	conn.Bind
	ipv6 conn.Bind
}

// openFamilies opens the two sockets of a port, or of any free one if it is 0. A bind is
// opened once only, since the twin is to have what it has but for what it has used.
func openFamilies(port uint16) (*families, []conn.ReceiveFunc, uint16, error) {
	bind := conn.NewDefaultBind()
	receives, actual, err := bind.Open(port)
	if err != nil {
		return nil, nil, 0, err
	}
	opened := &families{bind, bind}
	if std, ok := bind.(*conn.StdNetBind); ok {
		twin := new(conn.StdNetBind)
		reflect.ValueOf(twin).Elem().Set(reflect.ValueOf(std).Elem())
		opened.ipv6 = twin
	}
	return opened, receives, actual, nil
}

// Send implements conn.Bind.
func (f *families) Send(bufs [][]byte, endpoint conn.Endpoint) error {
	if endpoint.DstIP().Is6() {
		return f.ipv6.Send(bufs, endpoint)
	}
	return f.Bind.Send(bufs, endpoint)
}
