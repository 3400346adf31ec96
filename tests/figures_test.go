package tests

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// figuresEnv names a file that figures are added to, for tests/run.sh to show
// at the end. Without it they are only in the test's log.
const figuresEnv = "HOMEWARD_FIGURES"

// figure prints what has been measured. It decides nothing.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	text := strings.TrimSuffix(fmt.Sprintf(format, args...), "\n")
	t.Log("\n" + text)
	path := os.Getenv(figuresEnv)
	if path == "" {
		return
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := fmt.Fprintln(file, text); err != nil {
		t.Fatal(err)
	}
}
