//go:build unix

package ownership

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// Describe says whose a file is, as the end of an error. It says nothing if
// that cannot be known.
func Describe(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	owner := "uid " + strconv.FormatUint(uint64(stat.Uid), 10)
	if u, err := user.LookupId(strconv.FormatUint(uint64(stat.Uid), 10)); err == nil {
		owner = u.Username
	}
	return fmt.Sprintf(", while the file is %s's with mode %04o", owner, info.Mode().Perm())
}
