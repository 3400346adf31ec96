package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// newFile is a file that is to be made.
type newFile struct {
	path    string
	content []byte
	mode    fs.FileMode
	owner   *owner // nil: whoever runs the command
}

// newFiles are files that are to be made, all or none, and the folders that they need.
type newFiles struct {
	folders []newFile // without content
	files   []newFile
}

// owner is whom a file is given to.
type owner struct {
	name     string
	uid, gid int
}

// ownerCalled looks a user up. It returns nil, without an error, where files cannot be
// given away, since this is not root.
func ownerCalled(name string) (*owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("there is no user %s, whom Caddy's files are to belong to; make it with useradd --system --home-dir /var/lib/caddy --create-home --shell /usr/sbin/nologin %[1]s, or name another one with --user", name)
	}
	uid, uidErr := strconv.Atoi(account.Uid)
	gid, gidErr := strconv.Atoi(account.Gid)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	return &owner{name, uid, gid}, nil
}

// makeFolder makes a folder, with those above it, unless it is there.
func makeFolder(path string, mode fs.FileMode, owner *owner) (made bool, err error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("making a folder: %w", err)
	}
	if err := os.Mkdir(path, mode); err != nil {
		return false, fmt.Errorf("making a folder: %w", err)
	}
	if owner != nil {
		if err := os.Chown(path, owner.uid, owner.gid); err != nil {
			os.Remove(path)
			return false, fmt.Errorf("making a folder: %w", err)
		}
	}
	return true, nil
}

// writeNewFiles writes all files or none, and never over one that is there.
func writeNewFiles(files []newFile) (err error) {
	var there []string
	for _, file := range files {
		if _, err := os.Lstat(file.path); err == nil {
			there = append(there, file.path)
		}
	}
	if len(there) > 0 {
		return fmt.Errorf("nothing has been written, because this is there already: %s; move it away, or name another folder", strings.Join(there, ", "))
	}
	for i, file := range files {
		if err := file.write(); err != nil {
			for _, file := range files[:i] {
				os.Remove(file.path)
			}
			return err
		}
	}
	return nil
}

func (f *newFile) write() (err error) {
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return fmt.Errorf("writing a new file: %w", err)
	}
	// The umask may have taken more than was meant.
	err = file.Chmod(f.mode)
	if f.owner != nil && err == nil {
		err = file.Chown(f.owner.uid, f.owner.gid)
	}
	if err == nil {
		_, err = file.Write(f.content)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		os.Remove(f.path)
		return fmt.Errorf("writing a new file: %w", err)
	}
	return nil
}

// write makes the folders that are not there and writes the files, or none of them.
func (n *newFiles) write() (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, folder := range made {
				os.Remove(folder)
			}
		}
	}()
	for _, folder := range n.folders {
		isNew, err := makeFolder(folder.path, folder.mode, folder.owner)
		if err != nil {
			return err
		}
		if isNew {
			made = append([]string{folder.path}, made...)
		}
	}
	return writeNewFiles(n.files)
}
