package gvisor_test

import (
	"testing"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/gvisor"
	"github.com/homeward-relay/homeward/modules/internal/netstack/stacktest"
)

func newStack(config stacktest.Config) (netstack.Stack, error) {
	return gvisor.New(gvisor.Config{Name: config.Name, MTU: config.MTU, Addresses: config.Addresses})
}

func TestConformance(t *testing.T) { stacktest.Run(t, newStack) }

func TestClosedWindow(t *testing.T) { stacktest.ClosedWindow(t, newStack) }

func BenchmarkDial(b *testing.B) { stacktest.BenchmarkDial(b, newStack) }
