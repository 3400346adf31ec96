package ddns

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/modules/internal/redact"
)

const (
	// leastSecret is the length from which on a value counts as a secret: shorter ones are
	// more often part of a text that has nothing to do with them.
	leastSecret = 8

	// leastPlaceholder is the same for the value of a placeholder, which is more likely one.
	leastPlaceholder = 4
)

// placeholderSyntax is a placeholder in an option.
var placeholderSyntax = regexp.MustCompile(`\{[^{}]+\}`)

// hiding are the values of a provider's options, since some providers show their tokens in
// errors. The options are taken as they are written, and as the provider has them if there
// is one.
//
// It cannot know of secrets that are in no option: a provider may look for them in
// variables of the environment that have a meaning of their own, or in a file whose path is
// the option. A provider may log by itself. And for certificates (DNS-01) it is Caddy that
// has the provider and logs its errors as they are; those of package duckdns have no token.
func hiding(configuration json.RawMessage, provider any) *redact.Secrets {
	var values []string
	repl := caddy.NewReplacer()
	var hide func(text string)
	hide = func(text string) {
		for _, placeholder := range placeholderSyntax.FindAllString(text, -1) {
			if value := strings.TrimSpace(repl.ReplaceAll(placeholder, "")); len(value) >= leastPlaceholder {
				values = append(values, value)
			}
		}
		value := strings.TrimSpace(repl.ReplaceAll(text, ""))
		if len(value) >= leastSecret {
			values = append(values, value)
		}
		// Some providers' credentials are a file of JSON.
		if inner := object(value); inner != nil {
			eachText(inner, hide)
		}
	}
	walk := func(content []byte) {
		for name, value := range object(string(content)) {
			if name != "name" && name != "resolver" && name != "override_domain" {
				eachText(value, hide)
			}
		}
	}
	walk(configuration)
	if content, err := json.Marshal(provider); err == nil {
		walk(content)
	}
	return redact.Values(values...)
}

// object is an object of JSON, nil if the text is none.
func object(text string) (members map[string]any) {
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.UseNumber()
	if decoder.Decode(&members) != nil {
		return nil
	}
	return members
}

// eachText visits the texts and numbers in a value of JSON.
func eachText(value any, visit func(text string)) {
	switch v := value.(type) {
	case string:
		visit(v)
	case json.Number:
		visit(v.String())
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
