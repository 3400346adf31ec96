package certfile

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/homeward-relay/homeward/modules/internal/ownership"
)

// maxFile is more than any chain of certificates has.
const maxFile = 1 << 20

// files are the paths to a certificate and its key, which may be the same.
type files struct{ certificate, key string }

// look is what files are like without being read. Where a path leads to nothing, its
// place is nil.
type look [2]fs.FileInfo

func (f files) look() (now look) {
	for i, path := range []string{f.certificate, f.key} {
		// Stat follows symlinks, which certbot and dehydrated switch to renew.
		if info, err := os.Stat(path); err == nil {
			now[i] = info
		}
	}
	return now
}

// same reports whether nothing has happened to the files in between.
func (l look) same(other look) bool {
	for i, a := range l {
		b := other[i]
		if a == nil || b == nil || !os.SameFile(a, b) || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime()) {
			return false
		}
	}
	return true
}

// load reads a certificate and its key. Its errors have nothing of what is in the files.
func (f files) load() (*tls.Certificate, error) {
	certificate, err := read(f.certificate)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	key := certificate
	if f.key != f.certificate {
		if key, err = read(f.key); err != nil {
			return nil, fmt.Errorf("reading the certificate's key: %w", err)
		}
	}
	pair, err := tls.X509KeyPair(certificate, key)
	switch {
	case err != nil && f.key == f.certificate:
		return nil, fmt.Errorf("the file %s has no certificate with its key: %w; a key in another file has its path after the certificate's", f.certificate, err)
	case err != nil:
		return nil, fmt.Errorf("the certificate in %s and the key in %s are no pair: %w; the certificate must have been made for that key, and its path stands before the key's", f.certificate, f.key, err)
	}
	return &pair, nil
}

// read reads a file of PEM blocks.
func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, explain(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path) // to read it might take for ever
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, explain(path, err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(content) > maxFile:
		return nil, fmt.Errorf("the file %s is larger than 1 MiB", path)
	case len(content) == 0:
		return nil, fmt.Errorf("the file %s is empty", path)
	}
	return content, whole(path, content)
}

// explain makes an error of the file system's one that says what to do.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; give the path that the program that renews it keeps up to date, as certbot's below live", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: Caddy runs as %s%s; let that user read the file and enter the folders above it", err, ownership.CurrentUser(), ownership.Describe(path))
	}
	return err
}

// whole returns an error for a file that has no PEM blocks, or one that is not whole:
// tls.X509KeyPair passes over those, and a chain that is still being written would be
// served without its end.
func whole(path string, content []byte) error {
	blocks := 0
	for rest := content; ; blocks++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.Contains(block.Type, "ENCRYPTED") || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return fmt.Errorf("the key in %s has a passphrase, which Caddy cannot ask for; `openssl pkey` writes it without", path)
		}
	}
	begun := bytes.Count(content, []byte("-----BEGIN "))
	switch {
	case begun == 0:
		return fmt.Errorf("the file %s is not in PEM; with -inform der, `openssl x509` makes PEM of a certificate and `openssl pkey` of a key", path)
	case begun != blocks:
		return fmt.Errorf("the file %s is not whole: of %d PEM blocks only %d can be read", path, begun, blocks)
	}
	return nil
}
