package ddns

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

func TestPublic(t *testing.T) {
	for _, test := range []struct {
		address string
		a, aaaa string // the error, "" for none
	}{
		{"203.0.113.5", "", "no address for an AAAA"},
		{"::ffff:203.0.113.5", "", "no address for an AAAA"},
		{"2001:db8::1", "no address for an A ", ""},
		{"10.0.0.1", "private", "no address"},
		{"192.168.178.20", "private", "no address"},
		{"100.64.0.1", "CGN", "no address"},
		{"100.127.255.255", "CGN", "no address"},
		{"100.128.0.1", "", "no address"},
		{"169.254.1.1", "elsewhere", "no address"},
		{"127.0.0.1", "elsewhere", "no address"},
		{"0.0.0.0", "elsewhere", "no address"},
		{"255.255.255.255", "elsewhere", "no address"},
		{"224.0.0.1", "elsewhere", "no address"},
		{"fd77::1", "no address", "ULA"},
		{"fe80::1%eth0", "no address", "elsewhere"},
		{"::1", "no address", "elsewhere"},
		{"::", "no address", "elsewhere"},
		{"ff02::1", "no address", "elsewhere"},
	} {
		for i, want := range []string{test.a, test.aaaa} {
			_, err := families[i].public(netip.MustParseAddr(test.address))
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s as %s: got %v, want %q", test.address, families[i].record, err, want)
			}
		}
	}
}

func TestSuffix(t *testing.T) {
	for _, test := range []struct{ suffix, peer, want string }{
		{"::1c2d:3eff:fe4f:5a6b/64", "2001:db8:1:2:aaaa::1", "2001:db8:1:2:1c2d:3eff:fe4f:5a6b"},
		{"::5:0:0:0:20/56", "2001:db8:1:2ff::1", "2001:db8:1:205::20"},
		{"::20/64", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::20"},
		{"::20", "", "the length of the prefix"},
		{"::20/0", "", "no prefix"},
		{"::20/128", "", "no prefix"},
		{"2001:db8::20/64", "", "write zeros"},
		{"0:0:0:1::20/64", "", "write zeros"},
		{"192.0.2.1/24", "", "host's part"},
		{"::ffff:192.0.2.1/96", "", "host's part"},
	} {
		s, err := parseSuffix(test.suffix)
		if test.peer == "" {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: got %v, want an error with %q", test.suffix, err, test.want)
			}
			continue
		}
		if err != nil {
			t.Error(err)
		} else if got := s.at(netip.MustParseAddr(test.peer)); got.String() != test.want {
			t.Errorf("%s at %s: got %s, want %s", test.suffix, test.peer, got, test.want)
		}
	}
}

func FuzzSuffix(f *testing.F) {
	f.Add("::1c2d:3eff:fe4f:5a6b/64")
	f.Add("::5:0:0:0:20/56")
	peer := netip.MustParseAddr("2001:db8:1:2:aaaa::1")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSuffix(text)
		if err != nil {
			return
		}
		if joined := s.at(peer); !netip.PrefixFrom(peer, s.length).Contains(joined) {
			t.Errorf("%s at %s is %s", text, peer, joined)
		}
	})
}

func TestEcho(t *testing.T) {
	serve := func(answer string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if answer == "" {
				w.WriteHeader(http.StatusTeapot)
			}
			fmt.Fprint(w, answer)
		}))
		t.Cleanup(server.Close)
		return server.URL + "/?key=hidden"
	}
	good, page, private, broken, none := serve("203.0.113.5\n"), serve("<html>203.0.113.5"), serve("10.0.0.1"), serve(""), "http://127.0.0.1:1/?key=hidden"
	for _, test := range []struct {
		name   string
		family family
		urls   []string
		want   string
	}{
		{"good", families[0], []string{good}, "203.0.113.5"},
		{"the second", families[0], []string{none, broken, page, private, good}, "203.0.113.5"},
		{"a page", families[0], []string{page}, "no address alone"},
		{"a private address", families[0], []string{private}, "private"},
		{"broken", families[0], []string{broken}, "418"},
		{"nobody", families[0], []string{none}, "refused"},
		{"no way by IPv6", families[1], []string{good}, "tcp6"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := newEcho(test.urls, test.family).address(t.Context())
			text := got.String()
			if err != nil {
				text = err.Error()
			}
			if !strings.Contains(text, test.want) || strings.Contains(text, "hidden") {
				t.Errorf("got %s, want %s", text, test.want)
			}
		})
	}
}
