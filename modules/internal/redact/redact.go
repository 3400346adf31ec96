// Package redact takes secrets out of texts that others have written.
package redact

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"html"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// placeholder stands where a secret was.
	placeholder = "REDACTED"

	// longest is how much is looked for of a value, as a bound for a file that is given by
	// mistake. The longest of keys, RSA's of 4096 bits in PEM, have some 3.2 KiB.
	longest = 4 << 10

	// leastEncoded is the length in base64 from which on it is not there by chance.
	leastEncoded = 4
)

// Secrets are values that no text is to show. The zero value is none.
type Secrets struct{ pattern *regexp.Regexp }

// Values returns secrets. Empty ones are left out.
//
// They are found as they are, in capital and in small letters, as URLs, JSON, HTML and Go
// quote them, and within base64, where a password often stands beside its user. What shows
// less than a whole value is not found.
func Values(values ...string) *Secrets {
	values = slices.Clone(values)
	// What begins as another one does must not be left with its end.
	slices.SortFunc(values, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	var plain, encoded []string
	for _, value := range slices.Compact(values) {
		if value == "" {
			continue
		}
		value = value[:min(len(value), longest)]
		plain = append(plain, spelled(value))
		encoded = append(encoded, inBase64(value)...)
	}
	if len(plain) == 0 {
		return new(Secrets)
	}
	pattern := "(?i:" + strings.Join(plain, "|") + ")"
	if len(encoded) > 0 {
		pattern += "|" + strings.Join(encoded, "|")
	}
	return &Secrets{regexp.MustCompile(pattern)}
}

// Replace returns the text without the secrets.
func (s *Secrets) Replace(text string) string {
	if s == nil || s.pattern == nil {
		return text
	}
	return s.pattern.ReplaceAllLiteralString(text, placeholder)
}

// spelled is a pattern of a value in every way to write it.
func spelled(value string) string {
	var pattern strings.Builder
	for len(value) > 0 {
		r, size := utf8.DecodeRuneInString(value)
		pattern.WriteString(spelling(r, value[:size]))
		value = value[size:]
	}
	return pattern.String()
}

// spelling is a pattern of one character. Letters and digits are never quoted. A text that
// has been quoted more than once has more backslashes.
func spelling(r rune, char string) string {
	if r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
		return char
	}
	var ways []string
	switch {
	case r == utf8.RuneError: // as regexp has bytes that are no character
		ways = append(ways, `\x{FFFD}`)
	case r == '\\':
		ways = append(ways, `\\+`)
	default:
		ways = append(ways, `\\*`+regexp.QuoteMeta(char))
	}
	escapes := ""
	for _, b := range []byte(char) {
		escapes += fmt.Sprintf(`%%(?:25)*%02X`, b)
	}
	ways = append(ways, escapes, fmt.Sprintf(`\\+u%04X|\\+U%08X|\\+x%02X`, r, r, r), fmt.Sprintf(`&#0*%d;|&#x0*%X;`, r, r))
	if named := html.EscapeString(char); named != char {
		ways = append(ways, regexp.QuoteMeta(named))
	}
	if short, ok := map[rune]string{'\n': "n", '\r': "r", '\t': "t"}[r]; ok {
		ways = append(ways, `\\+`+short)
	}
	if r == ' ' {
		ways = append(ways, `\+`)
	}
	return "(?:" + strings.Join(ways, "|") + ")"
}

// inBase64 are patterns of a value within something that is encoded in base64, which has it
// in three forms, for the three places where a value can begin among the bytes that become
// four characters.
func inBase64(value string) (patterns []string) {
	for before := range 3 {
		content := append(make([]byte, before), value...)
		// Characters at either end that have bits of what is beside it can be any.
		begin, end := (before*8+5)/6, len(content)*8/6
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(content)
			if end-begin < leastEncoded {
				continue
			}
			pattern := spelled(text[begin:end])
			if before > 0 {
				pattern = "[A-Za-z0-9+/_-]?" + pattern
			}
			if end < len(text) {
				pattern += "[A-Za-z0-9+/_-]?"
			}
			if !slices.Contains(patterns, pattern) {
				patterns = append(patterns, pattern)
			}
		}
	}
	return patterns
}
