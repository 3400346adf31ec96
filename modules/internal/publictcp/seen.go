package publictcp

import (
	"errors"
	"sync"
	"syscall"
)

// reason is why a congestion control was refused.
type reason struct {
	algorithm string
	errno     syscall.Errno // 0 where the system said nothing
}

// reasons are those that this process has logged. They outlive configurations:
// a reload must not say again what is known. The zero value is ready.
type reasons struct{ known sync.Map }

var seen reasons

// first reports whether this is the first time that algorithm was refused for
// this kind of error.
func (r *reasons) first(algorithm string, err error) bool {
	why := reason{algorithm: algorithm}
	errors.As(err, &why.errno)
	_, known := r.known.LoadOrStore(why, struct{}{})
	return !known
}
