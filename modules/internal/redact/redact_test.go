package redact

import "testing"

func TestValues(t *testing.T) {
	for _, test := range []struct {
		values     []string
		text, want string
	}{
		{nil, "all of it", "all of it"},
		{[]string{""}, "all of it", "all of it"},
		{[]string{"secret"}, "a secret, secretly", "a REDACTED, REDACTEDly"},
		{[]string{"a/b c+d"}, "?x=a%2Fb+c%2Bd a%2Fb%20c+d a/b c+d", "?x=REDACTED REDACTED REDACTED"},
		{[]string{"one", "two"}, "two one", "REDACTED REDACTED"},
	} {
		if got := Values(test.values...).Replace(test.text); got != test.want {
			t.Errorf("%q without %q: got %q, want %q", test.text, test.values, got, test.want)
		}
	}
}
