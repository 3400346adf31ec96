// Package protect stands in for suah.dev/protect, which could not be had when
// this was written. Wireproxy calls it for OpenBSD's pledge and unveil, which
// are nothing on Linux.
package protect

// Pledge does nothing.
func Pledge(string) error { return nil }

// Unveil does nothing.
func Unveil(string, string) error { return nil }
