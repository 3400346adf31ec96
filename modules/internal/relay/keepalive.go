package relay

import (
	"net"
	"time"
)

// KeepAlive finds out that one end has vanished from an idle connection, of which
// the other is then told. It is patient, eleven minutes, so that connections live
// through what a line lives through: a router's reboot, a forced reconnect, a
// phone in a tunnel.
var KeepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: time.Minute, Count: 10}
