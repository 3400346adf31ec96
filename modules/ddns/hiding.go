package ddns

import (
	"encoding/json"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/modules/internal/redact"
)

// leastSecret is the length from which on a value counts as a secret: shorter ones are
// more often part of a text that has nothing to do with them.
const leastSecret = 8

// hiding replaces the values of a provider's options wherever they are in a text, since
// some providers show their tokens in errors. The options are taken as they are written
// and as the provider has them.
func hiding(configuration json.RawMessage, provider any) *strings.Replacer {
	var values []string
	hide := func(value string) {
		if len(value) >= leastSecret {
			values = append(values, value)
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
	return redact.Values(values...)
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
