package stacktest

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

func testBadConfig(t *testing.T, newStack New) {
	for _, config := range []Config{
		{Name: "a", MTU: 0},
		{Name: "a", MTU: netstack.MinMTU - 1},
		{Name: "a", MTU: 1 << 20},
		{Name: "a", MTU: mtu, Addresses: prefixes("::1/128")},
		{Name: "a", MTU: mtu, Addresses: []netip.Prefix{{}}},
	} {
		if stack, err := newStack(config); err == nil {
			t.Errorf("%+v was taken", config)
			stack.Close()
		}
	}
}

// testBadArguments gives addresses to every method that no socket can have.
func testBadArguments(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses})
	newWire(t, stack)
	remotes := []string{
		"0.0.0.0:80", "[::]:80", "127.0.0.1:80", "[::1]:80", "224.0.0.1:80", "[ff02::1]:80", "10.77.0.2:0",
		"[::ffff:127.0.0.1]:80", "[fe80::1%lo]:80",
	}
	for _, remote := range append([]netip.AddrPort{{}}, addrPorts(remotes...)...) {
		if conn, err := stack.DialTCP(within(t), netip.AddrPort{}, remote); err == nil {
			t.Errorf("TCP reached %v", remote)
			conn.Close()
		}
		if conn, err := stack.DialUDP(within(t), netip.AddrPort{}, remote); err == nil {
			t.Errorf("UDP reached %v", remote)
			conn.Close()
		}
	}
	for _, local := range addrPorts("127.0.0.1:0", "[fd77::1]:0", "224.0.0.1:9") {
		if conn, err := stack.DialTCP(within(t), local, netip.MustParseAddrPort("10.77.0.2:80")); err == nil {
			t.Errorf("TCP left from %v", local)
			conn.Close()
		}
	}
	for _, local := range addrPorts("10.1.1.1:80", "127.0.0.1:80", "[fd99::1]:80") {
		_, err := stack.ListenTCP(local)
		wantError(t, "listening on "+local.String(), err, syscall.EADDRNOTAVAIL)
		_, err = stack.ListenUDP(local)
		wantError(t, "listening on "+local.String(), err, syscall.EADDRNOTAVAIL)
	}
}

func addrPorts(all ...string) []netip.AddrPort {
	var parsed []netip.AddrPort
	for _, s := range all {
		parsed = append(parsed, netip.MustParseAddrPort(s))
	}
	return parsed
}

func testNoAddress(t *testing.T, newStack New) {
	only4 := newStackFor(t, newStack, Config{Name: "a", MTU: mtu, Addresses: hereAddresses[:1]})
	_, err := only4.DialTCP(within(t), netip.AddrPort{}, netip.MustParseAddrPort("[fd77::2]:80"))
	wantError(t, "dialing IPv6", err, netstack.ErrNoAddress)
	_, err = only4.DialUDP(within(t), netip.AddrPort{}, netip.MustParseAddrPort("[fd77::2]:80"))
	wantError(t, "dialing IPv6", err, netstack.ErrNoAddress)
	_, err = only4.ListenTCP(netip.MustParseAddrPort("[fd77::1]:80"))
	wantError(t, "listening on IPv6", err, netstack.ErrNoAddress, syscall.EADDRNOTAVAIL)
	if err := only4.SetAddresses(nil); err != nil {
		t.Fatal(err)
	}
	_, err = only4.DialTCP(within(t), netip.AddrPort{}, netip.MustParseAddrPort("10.77.0.2:80"))
	wantError(t, "dialing IPv4", err, netstack.ErrNoAddress)
}

func testDevice(t *testing.T, newStack New) {
	stack := newStackFor(t, newStack, Config{Name: "wg7", MTU: 1400, Addresses: hereAddresses})
	device := stack.Device()
	if device != stack.Device() {
		t.Error("the device differs from call to call")
	}
	if name, err := device.Name(); err != nil || name != "wg7" {
		t.Errorf("name is %q, %v", name, err)
	}
	if got, err := device.MTU(); err != nil || got != 1400 {
		t.Errorf("MTU is %d, %v", got, err)
	}
	if device.BatchSize() < 1 {
		t.Errorf("batch size is %d", device.BatchSize())
	}
	select {
	case event := <-device.Events():
		t.Errorf("event %v came by itself: its owner brings the tunnel up", event)
	default:
	}
	setMTU(t, stack, 1300)
	select {
	case event := <-device.Events():
		if event != tun.EventMTUUpdate {
			t.Errorf("event is %v", event)
		}
	case <-time.After(patience):
		t.Error("no event told of the MTU")
	}
	// Nobody reads events here, and that must not matter.
	for i := range 100 {
		setMTU(t, stack, 1280+i)
	}
	if kind := stack.Kind(); kind != "gvisor" && kind != "kernel" {
		t.Errorf("kind is %q", kind)
	}
}
