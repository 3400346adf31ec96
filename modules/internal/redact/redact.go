// Package redact takes secrets out of texts that others have written.
package redact

import (
	"net/url"
	"strings"
)

// Values returns a replacer of the values, wherever they stand in a text, as they are or
// in a URL. Empty ones are left out.
func Values(values ...string) *strings.Replacer {
	var pairs []string
	for _, value := range values {
		for _, form := range []string{value, url.QueryEscape(value), url.PathEscape(value)} {
			if form != "" {
				pairs = append(pairs, form, "REDACTED")
			}
		}
	}
	return strings.NewReplacer(pairs...)
}
