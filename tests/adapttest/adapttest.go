// Package adapttest runs .caddyfiletest fixtures: a Caddyfile, a line of ten
// hyphens, and what it means, which is either the JSON that it is adapted to
// or a part of the error that it gets. The error may come from the adapter or,
// for what only shows later, from validating the result. Members called
// "origins", which have the Caddyfile's line numbers, do not count in the JSON.
package adapttest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile" // the adapter
)

// Separator parts the Caddyfile from what is expected.
const Separator = "----------"

// Run runs every fixture in dir as a subtest. In a fixture, $DIR stands for a
// folder that the test makes anew and fill may put files into; fill may be
// nil. The Caddyfile's name in errors is Caddyfile.
func Run(t *testing.T, dir string, fill func(t *testing.T, dir string)) {
	t.Helper()
	fixtures, err := filepath.Glob(filepath.Join(dir, "*.caddyfiletest"))
	if err != nil {
		t.Fatal(err)
	}
	if len(fixtures) == 0 {
		t.Fatalf("no fixtures in %s", dir)
	}
	for _, fixture := range fixtures {
		t.Run(strings.TrimSuffix(filepath.Base(fixture), ".caddyfiletest"), func(t *testing.T) {
			content, err := os.ReadFile(fixture)
			if err != nil {
				t.Fatal(err)
			}
			input, want, ok := strings.Cut(string(content), "\n"+Separator+"\n")
			if !ok {
				t.Fatalf("%s has no line %s", fixture, Separator)
			}
			files := t.TempDir()
			if fill != nil {
				fill(t, files)
			}
			one(t, strings.ReplaceAll(input, "$DIR", files), strings.TrimSpace(strings.ReplaceAll(want, "$DIR", files)))
		})
	}
}

func one(t *testing.T, input, want string) {
	t.Helper()
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
	if strings.HasPrefix(want, "{") {
		if err != nil {
			t.Fatal(err)
		}
		if got, want := indent(t, adapted), indent(t, []byte(want)); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		return
	}
	if err == nil {
		config := new(caddy.Config)
		if err := json.Unmarshal(adapted, config); err != nil {
			t.Fatal(err)
		}
		err = caddy.Validate(config)
		if err == nil {
			t.Fatalf("it is accepted; want an error with %q", want)
		}
	}
	for _, part := range strings.Split(want, "\n") {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got  %v\nwant %s", err, part)
		}
	}
}

func indent(t *testing.T, raw []byte) string {
	t.Helper()
	// Decoded first, so that the order of an object's keys does not matter.
	var value any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if err := decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	dropOrigins(value)
	out, err := json.MarshalIndent(value, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func dropOrigins(value any) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, "origins")
		for _, member := range value {
			dropOrigins(member)
		}
	case []any:
		for _, element := range value {
			dropOrigins(element)
		}
	}
}
