package ddns

import (
	"context"
	"net/netip"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/publicip"
)

// interfaceOrigin is an interface of this machine.
type interfaceOrigin struct {
	name   string
	family family
}

func (o interfaceOrigin) address(context.Context) (netip.Addr, error) {
	return publicip.OfInterface(o.name, o.family.is4)
}

func (interfaceOrigin) interval() time.Duration { return watchInterval }
