package wgbind

import (
	"errors"
	"fmt"
	"net"
	"reflect"

	"golang.zx2c4.com/wireguard/conn"
)

// forbidFragments makes the sockets of an open bind send each datagram whole
// or not at all, and without regard to the path MTU that the kernel
// remembers: the tunnel measures its paths itself, and a remembered MTU makes
// the kernel refuse whole batches (UDP_SEGMENT) in which one segment is
// larger.
func forbidFragments(bind conn.Bind) error {
	sockets, err := socketsOf(bind)
	if err != nil {
		return err
	}
	for _, socket := range sockets {
		raw, err := socket.conn.SyscallConn()
		if err != nil {
			return err
		}
		var failure error
		if err := raw.Control(func(fd uintptr) { failure = setDontFragment(fd, socket.isIPv6) }); err != nil {
			return err
		}
		if failure != nil {
			return fmt.Errorf("setting don't fragment on %s: %w", socket.conn.LocalAddr(), failure)
		}
	}
	return nil
}

// udpSocket is one of the two sockets of a bind.
type udpSocket struct {
	conn   *net.UDPConn
	isIPv6 bool
}

// socketsOf returns the sockets of an open bind, which wireguard-go keeps to
// itself and offers no way to set options on. To read its two private fields
// is less than to write a bind of our own, whose batches, segmentation offload
// and sticky sources would be a copy of wireguard-go's. The fields are found
// by name and type, so that another version of wireguard-go brings an error,
// which a test looks for, and nothing worse.
func socketsOf(bind conn.Bind) ([]udpSocket, error) {
	if both, ok := bind.(*families); ok {
		bind = both.Bind
	}
	standard, ok := bind.(*conn.StdNetBind)
	if !ok {
		return nil, fmt.Errorf("%T: %w", bind, errors.ErrUnsupported)
	}
	var sockets []udpSocket
	for _, name := range []string{"ipv4", "ipv6"} {
		field := reflect.ValueOf(standard).Elem().FieldByName(name)
		if !field.IsValid() || field.Type() != reflect.TypeFor[*net.UDPConn]() {
			return nil, fmt.Errorf("%T has no socket %s: %w", bind, name, errors.ErrUnsupported)
		}
		// Nil where the host has no such family.
		if udp := (*net.UDPConn)(field.UnsafePointer()); udp != nil {
			sockets = append(sockets, udpSocket{conn: udp, isIPv6: name == "ipv6"})
		}
	}
	return sockets, nil
}
