package wgbind

import (
	"os"
	"strconv"
	"strings"
)

// BufferWanted is the size in bytes that wireguard-go asks for, for its
// sockets' buffers: what a fast line sends while the process waits for a CPU.
const BufferWanted = 7 << 20

// BufferLimit is the size in bytes to which this host cuts a UDP socket's
// receive or send buffer for an unprivileged process, whichever is less. It is
// 0 where that cannot be known.
func BufferLimit() int {
	limit := 0
	for _, name := range []string{"rmem_max", "wmem_max"} {
		content, err := os.ReadFile("/proc/sys/net/core/" + name)
		if err != nil {
			return 0
		}
		size, err := strconv.Atoi(strings.TrimSpace(string(content)))
		if err != nil {
			return 0
		}
		if limit == 0 || size < limit {
			limit = size
		}
	}
	return limit
}
