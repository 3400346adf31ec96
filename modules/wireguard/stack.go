package wireguard

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// congestionControlSyntax is what the kernel's algorithms are called by, in at
// most TCP_CA_NAME_MAX-1 bytes (linux/tcp.h, include/net/tcp.h).
var congestionControlSyntax = regexp.MustCompile(`^[A-Za-z0-9_]{1,15}$`)

func (t *Tunnel) parseStack(p *parsedTunnel) error {
	switch t.Stack {
	case "", "auto":
		p.config.Stack = tunnel.StackAuto
	case "kernel":
		p.config.Stack = tunnel.StackKernel
	case "gvisor":
		p.config.Stack = tunnel.StackGvisor
	default:
		return fmt.Errorf("there is no stack %q; use auto, kernel or gvisor", t.Stack)
	}
	return nil
}

func (t *Tunnel) parseCongestionControl(p *parsedTunnel) error {
	switch {
	case t.CongestionControl == "":
		return nil
	case !congestionControlSyntax.MatchString(t.CongestionControl):
		return fmt.Errorf("%q is no name of the kernel's, which consists of up to 15 letters, digits and underscores, such as bbr or cubic", t.CongestionControl)
	case t.Stack == "gvisor":
		return errors.New("gVisor's stack has cubic only; remove the line, or use stack auto or kernel")
	}
	p.config.CongestionControl = t.CongestionControl
	return nil
}
