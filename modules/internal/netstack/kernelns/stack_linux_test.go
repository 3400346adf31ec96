package kernelns_test

import (
	"os"
	"testing"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns"
	"github.com/homeward-relay/homeward/modules/internal/netstack/stacktest"
)

func newStack(config stacktest.Config) (netstack.Stack, error) {
	return kernelns.New(kernelns.Config{Name: config.Name, MTU: config.MTU, Addresses: config.Addresses})
}

func TestConformance(t *testing.T) { stacktest.Run(t, newStack) }

// TestRoot is for one who runs Caddy as root.
func TestRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	stack, err := kernelns.New(kernelns.Config{Name: "wg0", MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
}

func BenchmarkDial(b *testing.B) { stacktest.BenchmarkDial(b, newStack) }
