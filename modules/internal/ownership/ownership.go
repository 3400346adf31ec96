// Package ownership says who may not read a file, and whose it is, for errors that
// a person can act on.
package ownership

import (
	"fmt"
	"os"
	"os/user"
)

// CurrentUser is the name of the user that this process runs as, or its number.
func CurrentUser() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
