package tunnel

import (
	"sync/atomic"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// paddedDevice pads packets to a multiple of 16 bytes within the tunnel's MTU,
// which hides their exact length (whitepaper, section 5.4.6), in place of
// wireguard-go. That would pad probes too, those larger than the MTU as well,
// so that the path would have to carry more than what is probed for.
type paddedDevice struct {
	tun.Device

	// mtu is the tunnel's, in bytes.
	mtu atomic.Int32
}

func newPaddedDevice(inner tun.Device, mtu int) *paddedDevice {
	d := &paddedDevice{Device: inner}
	d.mtu.Store(int32(mtu))
	return d
}

// MTU is 1, at which wireguard-go pads nothing: it pads to a multiple of 16
// what a packet's length leaves when it is divided by the MTU
// (calculatePaddingSize in
// https://git.zx2c4.com/wireguard-go/tree/device/send.go). It has no other use
// for the MTU.
func (d *paddedDevice) MTU() (int, error) { return 1, nil }

// Read implements tun.Device.
func (d *paddedDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.Device.Read(bufs, sizes, offset)
	mtu := int(d.mtu.Load())
	for i, size := range sizes[:n] {
		padded := (size + device.PaddingMultiple - 1) &^ (device.PaddingMultiple - 1)
		if padded = min(padded, mtu, len(bufs[i])-offset); padded > size && !isProbe(bufs[i][offset:offset+size]) {
			clear(bufs[i][offset+size : offset+padded])
			sizes[i] = padded
		}
	}
	return n, err
}

// The places of an IP header that tell an echo request (RFC 791, RFC 8200,
// RFC 792, RFC 4443).
const (
	protocolAt   = 9 // of IPv4
	nextHeaderAt = 6 // of IPv6

	icmpProtocol   = 1
	icmpv6Protocol = 58

	echoRequest   = 8
	echoRequestV6 = 128
)

// isProbe tells whether a packet measures the path. An answer to a probe is
// none: it is padded as data is, so that the other end learns what the path
// must carry for a connection.
func isProbe(packet []byte) bool {
	if len(packet) <= netstack.MinMTU {
		return false
	}
	switch packet[0] >> 4 {
	case ipv4.Version:
		return packet[protocolAt] == icmpProtocol && packet[ipv4.HeaderLen] == echoRequest
	case ipv6.Version:
		return packet[nextHeaderAt] == icmpv6Protocol && packet[ipv6.HeaderLen] == echoRequestV6
	}
	return false
}
