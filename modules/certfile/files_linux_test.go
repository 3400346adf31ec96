package certfile

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLoadPipe has a pipe in the key's place that nobody writes to.
func TestLoadPipe(t *testing.T) {
	f := ecdsaPair(t, domain).write(t, t.TempDir())
	remove(t, f.key)
	if err := unix.Mkfifo(f.key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.load(); err == nil || !strings.Contains(err.Error(), "key.pem is no regular file") {
		t.Errorf("got %v", err)
	}
}

// TestUnreadable takes a key from the user that Caddy runs as, and gives it back: no
// time, size or inode of the file changes by that.
func TestUnreadable(t *testing.T) {
	f, renewed := ecdsaPair(t, domain).write(t, t.TempDir()), ecdsaPair(t, domain).write(t, t.TempDir())
	for _, path := range []string{f.certificate, renewed.certificate} {
		chmod(t, path, 0o644)
		chmod(t, filepath.Dir(path), 0o711)
		chmod(t, filepath.Dir(filepath.Dir(path)), 0o711)
	}
	asNobody(t)
	logged, w := newWatcher(t, f)
	if err := w.begin(); err == nil {
		t.Fatal("it can be read")
	} else {
		for _, want := range []string{"reading the certificate's key", "key.pem: permission denied", "Caddy runs as ", "with mode 0600", "let that user read the file"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		}
	}

	chmod(t, f.key, 0o644)
	if err := w.begin(); err != nil {
		t.Fatal(err)
	}
	logged.TakeAll()
	w.files = renewed
	for range 3 {
		w.look()
	}
	logged.expect(t, "certificate files cannot be used; serving the former certificate")
	chmod(t, w.files.key, 0o644)
	w.look()
	logged.expect(t, "serving renewed certificate from files")
}

// asNobody has the test read files as a user that owns none, until it ends.
func asNobody(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can read files as another user")
	}
	runtime.LockOSThread()
	t.Cleanup(func() {
		setUser(t, 0)
		runtime.UnlockOSThread()
	})
	setUser(t, 65534)
}

// setUser sets whose files the thread may read.
func setUser(t *testing.T, uid int) {
	t.Helper()
	unix.Setfsuid(uid) // which returns nothing of use
	if now, _ := unix.SetfsuidRetUid(-1); now != uid {
		t.Fatalf("files are read as user %d, not %d", now, uid)
	}
}

// chmod changes a file's permissions as root.
func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	done := make(chan error)
	go func() { done <- os.Chmod(path, mode) }() // on a thread that is still root's
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
