package publicip

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	address := func(text string, passing, permanent bool) interfaceAddress {
		return interfaceAddress{address: netip.MustParseAddr(text), passing: passing, permanent: permanent}
	}
	aged := func(text string, age uint32) interfaceAddress {
		return interfaceAddress{address: netip.MustParseAddr(text), age: age}
	}
	for _, test := range []struct {
		name      string
		addresses []interfaceAddress
		want      string
	}{
		{"the one", []interfaceAddress{address("fe80::1", false, true), address("2001:db8::9", false, false)}, "2001:db8::9"},
		{"not the temporary", []interfaceAddress{address("2001:db8::1", true, false), address("2001:db8::9", false, false)}, "2001:db8::9"},
		{"permanent", []interfaceAddress{address("2001:db8::1", false, false), address("2001:db8::9", false, true)}, "2001:db8::9"},
		{"the least", []interfaceAddress{address("2001:db8::9", false, false), address("2001:db8::1", false, false)}, "2001:db8::1"},
		{"the newest prefix", []interfaceAddress{aged("2001:db8:1::9", 9000), aged("2001:db8:2::9", 300), aged("2001:db8:3::9", 500)}, "2001:db8:2::9"},
		{"the least of the newest prefix", []interfaceAddress{aged("2001:db8:1::9", 9000), aged("2001:db8:2::9", 300), aged("2001:db8:2::8", 700)}, "2001:db8:2::8"},
		{"permanent, though not the newest", []interfaceAddress{aged("2001:db8:1::1", 3), {address: netip.MustParseAddr("2001:db8:2::9"), permanent: true, age: 900}}, "2001:db8:2::9"},
		{"temporary alone", []interfaceAddress{address("2001:db8::1", true, false)}, "temporary"},
		{"ULA alone", []interfaceAddress{address("fd00::1", false, true)}, "ULA"},
		{"the other family", []interfaceAddress{address("203.0.113.5", false, true)}, "no IPv6 address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := choose("eth0", false, test.addresses)
			if text := fmt.Sprint(got, err); !strings.Contains(text, test.want) {
				t.Errorf("got %s, want %s", text, test.want)
			}
		})
	}
}

// The loopback interface is everywhere, and has nothing that could be published.
func TestInterface(t *testing.T) {
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, device := range interfaces {
		if device.Flags&net.FlagLoopback == 0 {
			continue
		}
		addresses, err := addressesOf(&device)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, a := range addresses {
			found = found || a.address == netip.MustParseAddr("127.0.0.1") && a.permanent && !a.passing
		}
		if !found {
			t.Errorf("%s has %v, without 127.0.0.1", device.Name, addresses)
		}
		if _, err := OfInterface(device.Name, true); err == nil || !strings.Contains(err.Error(), "elsewhere") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := OfInterface("none0", true); err == nil || !strings.Contains(err.Error(), "no network interface none0") {
		t.Errorf("got %v", err)
	}
}

// Addresses that stay, or are not this machine's, have none in their place.
func TestLasting(t *testing.T) {
	for _, text := range []string{"127.0.0.1", "203.0.113.77", "2001:db8::77"} {
		if got := Lasting(netip.MustParseAddr(text)); got.String() != text {
			t.Errorf("in place of %s: %s", text, got)
		}
	}
}
