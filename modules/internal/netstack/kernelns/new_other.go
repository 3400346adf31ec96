//go:build !linux

package kernelns

import (
	"errors"
	"fmt"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// New fails: only Linux has network namespaces.
func New(config Config) (netstack.Stack, error) {
	return nil, fmt.Errorf("creating kernel stack %q: only Linux has it: %w", config.Name, errors.ErrUnsupported)
}
