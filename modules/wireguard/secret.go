package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/modules/internal/ownership"
)

// maxSecretFile is more than any key file has.
const maxSecretFile = 4096

// expandSecret returns the secret that value stands for: `{file./path}`,
// `{env.NAME}`, another placeholder or the secret itself. Its errors never
// show a secret. A nil repl returns value as it is.
func expandSecret(repl *caddy.Replacer, value string) (string, error) {
	if path, ok := strings.CutPrefix(value, "{file."); ok && strings.HasSuffix(path, "}") {
		return readSecretFile(strings.TrimSuffix(path, "}"))
	}
	if repl == nil {
		return value, nil
	}
	expanded, err := repl.ReplaceOrErr(value, true, true)
	if err != nil {
		if name, ok := strings.CutPrefix(value, "{env."); ok {
			return "", fmt.Errorf("the environment variable %s is empty or not set for Caddy's process", strings.TrimSuffix(name, "}"))
		}
		// The replacer's own error quotes what it could not replace, which
		// may be a secret with a brace in it.
		return "", errors.New("a placeholder has no value; use {file./path/to/key} or {env.NAME}")
	}
	return strings.TrimSpace(expanded), nil
}

// inlineSecrets names the options whose secret is in the configuration itself.
func (t *Tunnel) inlineSecrets() (options []string) {
	inline := func(value string) bool { return value != "" && !strings.Contains(value, "{") }
	if inline(t.PrivateKey) {
		options = append(options, "private_key")
	}
	for _, name := range slices.Sorted(maps.Keys(t.Peers)) {
		if inline(t.Peers[name].PresharedKey) {
			options = append(options, "peer "+name+" preshared_key")
		}
	}
	return options
}

func readSecretFile(path string) (string, error) {
	file, err := openSecretFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("the file %s does not exist; make a key there, for example with `caddy wireguard genkey`", path)
	case err != nil:
		return "", fmt.Errorf("reading the key file: %w", err)
	}
	defer file.Close()
	content := make([]byte, maxSecretFile+1)
	n, err := file.Read(content)
	switch {
	case n > maxSecretFile:
		return "", fmt.Errorf("the file %s is too large for a key", path)
	case n == 0:
		if err != nil && !strings.Contains(err.Error(), "EOF") {
			return "", fmt.Errorf("reading the key file: %w", err)
		}
		return "", fmt.Errorf("the file %s is empty; it must contain the key in base64", path)
	}
	return strings.TrimSpace(string(content[:n])), nil
}

// openSecretFile opens a file that has secrets in it.
func openSecretFile(path string) (*os.File, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("the file %s cannot be read by Caddy, which runs as %s%s; let that user, and nobody else, read it: chown %[2]s %[1]s && chmod 600 %[1]s", path, ownership.CurrentUser(), ownership.Describe(path))
	}
	return file, err
}
