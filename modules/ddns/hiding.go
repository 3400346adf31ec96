package ddns

import (
	"encoding/json"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// leastSecret is the length from which on a value counts as a secret: shorter ones are
// more often part of a text that has nothing to do with them.
const leastSecret = 8

// hiding replaces the values of a provider's options wherever they are in a text, since
// some providers show their tokens in errors. The options are taken as they are written
// and as the provider has them.
func hiding(configuration json.RawMessage, provider any) *strings.Replacer {
	var pairs []string
	seen := make(map[string]bool)
	hide := func(value string) {
		for _, form := range []string{value, url.QueryEscape(value), url.PathEscape(value)} {
			if len(form) >= leastSecret && !seen[form] {
				seen[form] = true
				pairs = append(pairs, form, "REDACTED")
			}
		}
	}
	repl := caddy.NewReplacer()
	walk := func(content []byte) {
		var options map[string]any
		if json.Unmarshal(content, &options) != nil {
			return
		}
		for name, value := range options {
			if name != "name" && name != "resolver" && name != "override_domain" {
				eachText(value, func(text string) { hide(strings.TrimSpace(repl.ReplaceAll(text, ""))) })
			}
		}
	}
	walk(configuration)
	if content, err := json.Marshal(provider); err == nil {
		walk(content)
	}
	return strings.NewReplacer(pairs...)
}

// eachText visits the texts in a value of JSON.
func eachText(value any, visit func(text string)) {
	switch v := value.(type) {
	case string:
		visit(v)
	case []any:
		for _, element := range v {
			eachText(element, visit)
		}
	case map[string]any:
		for _, element := range v {
			eachText(element, visit)
		}
	}
}
