//go:build !linux

package relay

import "testing"

// paths are those of sockets: here they are copied.
var paths = []path{{name: "socket", set: func(testing.TB) {}, conn: asItIs, copied: true}}
