package tunnel

import (
	"cmp"
	"fmt"

	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/netstack/gvisor"
)

// congestionChooser is a stack whose TCP can send in more than one way.
type congestionChooser interface {
	// SetCongestionControl chooses how new connections send, by the kernel's
	// name for it; "" is the stack's default. Open connections stay as they
	// are.
	SetCongestionControl(name string) error
}

// changeStack changes of the stack what can be changed while connections are
// open, and says what cannot. l.mu is held.
func (l *live) changeStack(wanted *Config, logger *zap.Logger) error {
	if wanted.Stack != l.config.Stack && !l.serves(wanted.Stack) {
		logger.Warn("the tunnel keeps its TCP/IP stack, because another one would cut every connection in it; restart Caddy for the change to take effect",
			zap.String("stack", l.stack.Kind()),
			zap.String("wanted", wanted.Stack.name()))
	}
	if wanted.CongestionControl == l.config.CongestionControl {
		return nil
	}
	stack, ok := l.stack.(congestionChooser)
	if !ok {
		if !gvisorHas(wanted.CongestionControl) {
			logger.Warn("the tunnel's TCP/IP stack is gVisor's, which has no other congestion control than its own",
				zap.String("congestion_control", gvisor.CongestionControl),
				zap.String("wanted", wanted.CongestionControl))
		}
		return nil
	}
	if err := stack.SetCongestionControl(wanted.CongestionControl); err != nil {
		return fmt.Errorf("changing the tunnel's congestion control: %w", err)
	}
	return nil
}

// serves tells whether the live stack is the one that choice would get. What
// auto once came to is as good as long as auto is asked for.
func (l *live) serves(choice StackChoice) bool {
	if choice == StackAuto {
		return l.choice == StackAuto || l.stack.Kind() == string(StackKernel)
	}
	return l.stack.Kind() == string(choice)
}

// stackReason says why the tunnel has the stack that it has, and what that
// stack makes of the configuration's congestion control if it is another.
func (l *live) stackReason() string {
	reason := l.reason
	if wanted := l.config.Stack; !l.serves(wanted) {
		reason = fmt.Sprintf("the configuration now says %s, which takes effect when Caddy is restarted", wanted.name())
	}
	if _, ok := l.stack.(congestionChooser); !ok && !gvisorHas(l.config.CongestionControl) {
		reason += fmt.Sprintf("; congestion_control %s is not used, since this stack has only %s", l.config.CongestionControl, gvisor.CongestionControl)
	}
	return reason
}

// name is how a configuration says it.
func (c StackChoice) name() string { return cmp.Or(string(c), "auto") }
