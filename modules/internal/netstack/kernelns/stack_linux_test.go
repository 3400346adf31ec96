package kernelns_test

import (
	"testing"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns"
	"github.com/homeward-relay/homeward/modules/internal/netstack/stacktest"
)

func TestConformance(t *testing.T) {
	stacktest.Run(t, func(config stacktest.Config) (netstack.Stack, error) {
		return kernelns.New(kernelns.Config{Name: config.Name, MTU: config.MTU, Addresses: config.Addresses})
	})
}
