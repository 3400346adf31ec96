package redact

import (
	"encoding/base64"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestValues(t *testing.T) {
	for _, test := range []struct {
		name       string
		values     []string
		text, want string
	}{
		{"none", nil, "all of it", "all of it"},
		{"empty", []string{""}, "all of it", "all of it"},
		{"within a word", []string{"secret"}, "a secret, secretly", "a REDACTED, REDACTEDly"},
		{"two", []string{"one", "two"}, "two one", "REDACTED REDACTED"},
		{"the same twice", []string{"one", "one"}, "one", "REDACTED"},
		{"one begins as the other", []string{"secret", "secret-and-more"}, "secret-and-more secret", "REDACTED REDACTED"},
		{"in other letters", []string{"Secret"}, "SECRET secret", "REDACTED REDACTED"},
		{"a part", []string{"secret"}, "secre ecret", "secre ecret"},
		{"in a URL", []string{"a/b c+d"}, "?x=a%2Fb+c%2Bd a%2Fb%20c+d a%2fb%20c%2bd a/b c+d", "?x=REDACTED REDACTED REDACTED REDACTED"},
		{"in a URL in a URL", []string{"a/b"}, "a%252Fb a%25252fb", "REDACTED REDACTED"},
		{"with what is a pattern", []string{"a.b*c(d"}, "a.b*c(d axbbc(d", "REDACTED axbbc(d"},
		{"in JSON", []string{`a"b\c<d`}, `"a\"b\\c\u003cd" "a\\\"b\\\\c\\u003cd"`, `"REDACTED" "REDACTED"`},
		{"in HTML", []string{`a&b"c`}, `a&amp;b&#34;c a&#38;b&#x22;c`, `REDACTED REDACTED`},
		{"lines", []string{"a\nb\tc"}, "a\nb\tc " + `a\nb\tc a%0Ab%09c`, "REDACTED REDACTED REDACTED"},
		{"other letters than ASCII's", []string{"pässwort"}, `PÄSSWORT p\u00e4sswort p%C3%A4sswort p\U000000E4sswort`, "REDACTED REDACTED REDACTED REDACTED"},
		{"no characters", []string{"a\xffb"}, "a\xffb a%FFb", "REDACTED REDACTED"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Values(test.values...).Replace(test.text); got != test.want {
				t.Errorf("%q without %q: got %q, want %q", test.text, test.values, got, test.want)
			}
		})
	}
}

// In base64 a value looks different with each length of what is before it.
func TestBase64(t *testing.T) {
	const secret = "pa?s>w~rd"
	hide := Values(secret)
	for before := range 8 {
		for after := range 4 {
			text := strings.Repeat("u", before) + secret + strings.Repeat("\n", after)
			for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
				encoded := encoding.EncodeToString([]byte(text))
				got := hide.Replace(encoded)
				clear, _, hidden := strings.Cut(got, placeholder)
				// What is left of what is before it ends within a byte.
				left, _ := base64.RawStdEncoding.DecodeString(clear[:len(clear)/4*4])
				if !hidden || strings.Trim(string(left), "u") != "" {
					t.Errorf("%d before, %d after: %s became %s", before, after, encoded, got)
				}
			}
		}
	}
	if text := base64.StdEncoding.EncodeToString([]byte("somebody:another")); hide.Replace(text) != text {
		t.Errorf("%s became %s", text, hide.Replace(text))
	}
}

// A file that is given by mistake costs neither much time nor the process.
func TestLongValue(t *testing.T) {
	long := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(long)
	key := base64.StdEncoding.EncodeToString(long[:3<<10])
	for name, value := range map[string]string{"any bytes": string(long), "a key": key} {
		if got := Values(value).Replace("it is " + value); strings.Contains(got, value[100:200]) || !strings.Contains(got, placeholder) {
			t.Errorf("%s: got %.80q…", name, got)
		}
	}
}

func FuzzValues(f *testing.F) {
	f.Add("secret", "a secret")
	f.Add("aä\\\"%", `a\\"%`)
	f.Fuzz(func(t *testing.T, value, text string) {
		if len(value) < 4 || len(value) > longest || strings.Contains(placeholder, value) || !utf8.ValidString(value) {
			return
		}
		for _, left := range strings.Split(Values(value).Replace(text+value+text), placeholder) {
			if strings.Contains(left, value) {
				t.Errorf("%q is in %q", value, left)
			}
		}
	})
}
