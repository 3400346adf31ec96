package tunnel

import (
	"fmt"

	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/netstack/gvisor"
	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns"
)

// StackChoice is which TCP/IP stack a tunnel is to have.
type StackChoice string

const (
	// StackAuto is the kernel's stack where it can be had, else gVisor's.
	StackAuto StackChoice = ""

	// StackKernel is the kernel's own stack, in a namespace of ours.
	StackKernel StackChoice = "kernel"

	// StackGvisor is gVisor's stack, which works everywhere.
	StackGvisor StackChoice = "gvisor"
)

// newStack makes the stack that config asks for and says why it is that one.
func newStack(name string, config *Config, logger *zap.Logger) (stack netstack.Stack, reason string, err error) {
	if config.Stack != StackGvisor {
		stack, err = kernelns.New(kernelns.Config{
			Name:              name,
			MTU:               startMTU(config),
			Addresses:         config.Addresses,
			CongestionControl: config.CongestionControl,
			Logger:            logger,
		})
		switch {
		case err == nil && config.Stack == StackKernel:
			return stack, "the configuration says so", nil
		case err == nil:
			return stack, "it is the faster one and this host allows it", nil
		case config.Stack == StackKernel:
			return nil, "", fmt.Errorf("%w; `stack auto` uses gVisor's stack where the kernel's cannot be had", err)
		}
		reason = "the kernel's stack cannot be had here: " + err.Error()
		ignored := zap.Skip()
		if name := config.CongestionControl; !gvisorHas(name) {
			ignored = zap.String("ignored_congestion_control", name)
		}
		logger.Warn("using gVisor's TCP/IP stack, since the kernel's cannot be had here; on a lossy line it is much slower", zap.Error(err), ignored)
	} else {
		reason = "the configuration says so"
	}
	stack, err = gvisor.New(gvisor.Config{
		Name:      name,
		MTU:       startMTU(config),
		Addresses: config.Addresses,
		Logger:    logger,
	})
	return stack, reason, err
}

// gvisorHas says whether gVisor's stack sends as a congestion control that is
// asked for by name. No name asks for none.
func gvisorHas(name string) bool { return name == "" || name == gvisor.CongestionControl }
