package publicip

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	if Check(netip.Addr{}) == nil {
		t.Error("no address is public")
	}
	for _, test := range []struct{ address, want string }{
		{"203.0.113.5", ""},
		{"::ffff:203.0.113.5", ""},
		{"2001:db8::1", ""},
		{"100.63.255.255", ""},
		{"100.64.0.1", "CGN"},
		{"::ffff:100.127.0.1", "CGN"},
		{"192.168.178.20", "private"},
		{"fd00::1", "ULA"},
		{"fe80::1%eth0", "not reached"},
		{"169.254.1.1", "not reached"},
		{"127.0.0.1", "not reached"},
		{"::", "not reached"},
		{"255.255.255.255", "not reached"},
		{"ff02::1", "not reached"},
		{"192.0.0.2", "not reached"},
		{"0.1.2.3", "not reached"},
		{"::192.0.2.1", "not reached"},
		{"fec0::1", "not reached"},
	} {
		err := Check(netip.MustParseAddr(test.address))
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", test.address, err, test.want)
		}
	}
}
