//go:build !linux

package tunnel

import "context"

// watchRoutes does nothing here: the keeper looks each second.
func watchRoutes(context.Context, func()) {}
