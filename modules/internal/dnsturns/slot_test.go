package dnsturns

import "testing"

func TestSlot(t *testing.T) {
	for _, tt := range []struct{ record, want string }{
		{Record("example.duckdns.org"), "example.duckdns.org"},
		{Record("sub.example.duckdns.org"), "example.duckdns.org"},
		{Record("a.b.c.example.duckdns.org"), "example.duckdns.org"},
		{Record("*.example.duckdns.org"), "example.duckdns.org"},
		{Record("Sub.Example.DuckDNS.org."), "example.duckdns.org"},
		{"example.duckdns.org", "example.duckdns.org"},
		{"other.duckdns.org", "other.duckdns.org"},
		{"duckdns.org", ""},
		{".duckdns.org", ""},
		{"a..duckdns.org", ""},
		{"example.notduckdns.org", ""},
		{"example.duckdns.org.example.com", ""},
		{"example.com", ""},
		{"192.0.2.1", ""},
		{".", ""},
		{"", ""},
	} {
		t.Run(tt.record, func(t *testing.T) {
			if got := Slot(tt.record); got != tt.want {
				t.Errorf("Slot(%q) = %q, want %q", tt.record, got, tt.want)
			}
		})
	}
}

func TestRecord(t *testing.T) {
	for _, tt := range []struct {
		one, other string
		same       bool
	}{
		{"example.duckdns.org", "*.example.duckdns.org", true},
		{"example.duckdns.org", "sub.example.duckdns.org", false},
		{"*.sub.example.duckdns.org", "*.example.duckdns.org", false},
	} {
		t.Run(tt.one+" "+tt.other, func(t *testing.T) {
			if same := Record(tt.one) == Record(tt.other); same != tt.same {
				t.Errorf("Record(%q) = %q, Record(%q) = %q", tt.one, Record(tt.one), tt.other, Record(tt.other))
			}
		})
	}
}
