package testnet

import (
	"path/filepath"
	"testing"
)

// UpQuick starts WireGuard at home with wg-quick(8) and a file of the reader's
// own, as people do, in place of Up. It uses the kernel's WireGuard if there is
// one, else wireguard-go. The returned function takes it down with the same file.
func (h *Home) UpQuick(t testing.TB, config string) (down func()) {
	t.Helper()
	Need(t, "wg-quick")
	file := filepath.Join(Folder(t), h.Interface+".conf")
	WriteFile(t, file, []byte(config), 0o600)
	quick := func(verb string) {
		t.Helper()
		h.Output(t, "env", "WG_QUICK_USERSPACE_IMPLEMENTATION="+WireGuardGo(t), "wg-quick", verb, file)
	}
	quick("up")
	return func() { quick("down") }
}
