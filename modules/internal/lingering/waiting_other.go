//go:build !linux

package lingering

// waiting is not known.
func waiting(Socket) int { return -1 }
