package wireguard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/homeward-relay/homeward/modules/internal/ownership"
	"github.com/homeward-relay/homeward/modules/internal/tunnel"
	"github.com/homeward-relay/homeward/modules/internal/wgquick"
)

// usualKeyFolder is where the examples have their keys.
const usualKeyFolder = "/etc/caddy"

func importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import <file> [--name <tunnel>] [--key-folder <folder>]",
		Short: "Turns a WireGuard configuration file into a Caddyfile block",
		Long: `
Prints the wireguard block of a Caddyfile that means what a configuration file
of wg-quick(8), of a WireGuard app or of a FRITZ!Box does. Comments in it name
each key of the file that has no equivalent, and why.

Keys are never printed. With --key-folder they are written to files there, which
nobody else can read; no file is overwritten. Without, the block names the files
that they should be in, and the command that makes them.

The file itself can go on being the configuration: the option wg_quick in a
wireguard block reads it whenever Caddy loads its own.`,
		Args: cobra.ExactArgs(1),
	}
	name := cmd.Flags().String("name", "", "Name of the tunnel; default: the file's, if it can be one, else "+defaultTunnel)
	folder := cmd.Flags().String("key-folder", "", "Folder to write the keys to")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true // what goes wrong from here on is not the usage
		return importFile(cmd.OutOrStdout(), args[0], *name, *folder)
	}
	return cmd
}

func importFile(w io.Writer, path, name, folder string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("importing %s: %w", path, err)
	}
	content, err := readImport(path)
	if err != nil {
		return err
	}
	file, err := wgquick.Parse(path, content)
	if err != nil {
		return err
	}
	if name == "" {
		name = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
		if !nameSyntax.MatchString(name) {
			name = defaultTunnel
		}
	}
	keyFolder := usualKeyFolder
	if folder != "" {
		if keyFolder, err = filepath.Abs(folder); err != nil {
			return fmt.Errorf("finding the folder for the keys: %w", err)
		}
	}
	imported, err := newImport(file, name, keyFolder)
	if err != nil {
		return err
	}
	if folder != "" {
		if err := writeKeys(imported.keys); err != nil {
			return err
		}
	}
	_, err = io.WriteString(w, imported.text(folder != ""))
	return err
}

func readImport(path string) ([]byte, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("importing %s: %s cannot read it%s; run this as a user who can", path, ownership.CurrentUser(), ownership.Describe(path))
	}
	if err != nil {
		return nil, fmt.Errorf("importing a WireGuard configuration: %w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxWgQuickFile+1))
	if err == nil && len(content) > maxWgQuickFile {
		err = errors.New("it is too large for a WireGuard configuration")
	}
	if err != nil {
		return nil, fmt.Errorf("importing %s: %w", path, err)
	}
	return content, nil
}

// imported is a file as a tunnel of ours.
type imported struct {
	name     string
	from     *wgquick.File
	tunnel   *Tunnel             // without secrets: the names of the key files are there
	comments map[string][]string // as MarshalCaddyfile takes them
	keys     []keyFile
}

// keyFile is a secret and where it is to be.
type keyFile struct {
	path   string
	base64 string
}

// newImport turns a file into the tunnel called name, whose keys are to be in a
// folder.
func newImport(file *wgquick.File, name, keyFolder string) (*imported, error) {
	repl := caddy.NewReplacer()
	t, ignored, err := new(Tunnel).supplied(file, repl)
	if err != nil {
		return nil, err
	}
	im := &imported{name: name, from: file, tunnel: t, comments: make(map[string][]string)}
	t.Origins[originBlock] = file.Path // for what it lacks
	keyless := t.PrivateKey == ""
	if keyless {
		t.PrivateKey = tunnel.NewPrivateKey().Base64()
	}
	parsed, err := t.parse(name, repl)
	if err != nil {
		return nil, err
	}

	im.keys = t.moveKeys(name, keyFolder)
	if keyless {
		im.keys = im.keys[1:]
		im.note("", "PrivateKey is not in the file: put the key into "+filepath.Join(keyFolder, name+".key"))
	}
	for _, peerName := range slices.Sorted(maps.Keys(t.Peers)) {
		if len(parsed.hosts[peerName]) == 0 {
			im.note(peerName, "The name "+peerName+" stands for no address yet. Name the server's, to use it in upstreams:")
			im.note(peerName, "host <address>")
		}
	}
	if len(ignored) > 0 {
		im.note("", "Not imported:")
	}
	for _, key := range ignored {
		im.note("", "- "+key.String())
	}
	return im, nil
}

// moveKeys puts the names of files in a folder where the tunnel has keys, and returns
// these, the private key first.
func (t *Tunnel) moveKeys(name, folder string) (keys []keyFile) {
	move := func(secret *string, base string) {
		if *secret == "" {
			return
		}
		path := filepath.Join(folder, base)
		keys = append(keys, keyFile{path, *secret})
		*secret = "{file." + path + "}"
	}
	move(&t.PrivateKey, name+".key")
	for _, peerName := range slices.Sorted(maps.Keys(t.Peers)) {
		move(&t.Peers[peerName].PresharedKey, name+"-"+peerName+".psk")
	}
	return keys
}

func (im *imported) note(peer, comment string) {
	im.comments[peer] = append(im.comments[peer], comment)
}

// text is what the command prints: all but the keys. Written says that they are
// in their files.
func (im *imported) text(written bool) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, "# "+format+"\n", args...) }
	say("From %s, for the global options: the braces at the top of the Caddyfile.", oneLine(im.from.Path))
	if len(im.keys) > 0 {
		paths := make([]string, len(im.keys))
		for i, key := range im.keys {
			paths[i] = shellWord(key.path)
		}
		if written {
			say("The keys are in files that only the user who made them can read. If Caddy runs as")
			say("another one, such as caddy, give them to that one:")
		} else {
			say("The keys are not in their files yet. This writes them, as root, where Caddy runs as caddy:")
			say("  caddy wireguard import %s --name %s --key-folder %s", shellWord(im.from.Path), im.name, shellWord(filepath.Dir(im.keys[0].path)))
		}
		say("  chown caddy %s", strings.Join(paths, " "))
	}
	b.WriteString(im.tunnel.MarshalCaddyfile(im.name, im.comments))
	return b.String()
}

// writeKeys writes each key to its file, or none of them.
func writeKeys(keys []keyFile) (err error) {
	var missing []keyFile
	for _, key := range keys {
		there, err := isKeyThere(key)
		if err != nil {
			return err
		}
		if !there {
			missing = append(missing, key)
		}
	}
	err = writeNewFiles(keyFiles(missing, "", nil))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing the keys: the folder %s does not exist; make it first, for example with install -d -o caddy -g caddy -m 750 %[1]s", filepath.Dir(missing[0].path))
	}
	return err
}

// isKeyThere tells whether a file has the key already. What else a file has is
// not to be lost.
func isKeyThere(key keyFile) (bool, error) {
	content, err := os.ReadFile(key.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("writing the key: %w", err)
	case string(bytes.TrimSpace(content)) != key.base64:
		return false, fmt.Errorf("writing the key: %s is there already, with something else in it; move it away, or use another --name or --key-folder", key.path)
	}
	if info, err := os.Stat(key.path); err == nil && runtime.GOOS != "windows" && info.Mode()&0o007 != 0 {
		return false, fmt.Errorf("writing the key: %s has it already, and everybody can read it there: chmod 600 %[1]s", key.path)
	}
	return true, nil
}

// oneLine keeps a path from ending the comment that it stands in.
func oneLine(path string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return '?'
		}
		return r
	}, path)
}

// shellWord returns a path as a shell takes it for one word.
func shellWord(path string) string {
	path = oneLine(path)
	if !strings.ContainsAny(path, " '\"\\$`&;|<>()*?[]#~!{}") {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
