package dnsturns

import "testing"

func TestSlot(t *testing.T) {
	for _, tt := range []struct{ identifier, want string }{
		{"example.duckdns.org", "example.duckdns.org"},
		{"sub.example.duckdns.org", "example.duckdns.org"},
		{"a.b.c.example.duckdns.org", "example.duckdns.org"},
		{"*.example.duckdns.org", "example.duckdns.org"},
		{"Sub.Example.DuckDNS.org.", "example.duckdns.org"},
		{"other.duckdns.org", "other.duckdns.org"},
		{"duckdns.org", ""},
		{".duckdns.org", ""},
		{"a..duckdns.org", ""},
		{"*.duckdns.org", ""},
		{"example.notduckdns.org", ""},
		{"example.duckdns.org.example.com", ""},
		{"example.com", ""},
		{"192.0.2.1", ""},
		{".", ""},
		{"", ""},
	} {
		t.Run(tt.identifier, func(t *testing.T) {
			if got := Slot(tt.identifier); got != tt.want {
				t.Errorf("Slot(%q) = %q, want %q", tt.identifier, got, tt.want)
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
		{"example.duckdns.org", "EXAMPLE.duckdns.org.", true},
		{"example.duckdns.org", "sub.example.duckdns.org", false},
		{"*.sub.example.duckdns.org", "*.example.duckdns.org", false},
	} {
		t.Run(tt.one+" "+tt.other, func(t *testing.T) {
			if same := record(tt.one) == record(tt.other); same != tt.same {
				t.Errorf("record(%q) = %q, record(%q) = %q", tt.one, record(tt.one), tt.other, record(tt.other))
			}
		})
	}
}
